"""Annotations in the forms that other trainers read: those of Charades-STA, ActivityNet Captions, TACoS, Moment-DETR, TMLGA.

Names of splits are train, val and test.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from excl.pipeline.exchange.export_view import AVI, ExportView
from excl.pipeline.store.training_store import Query, TrainingStore

Videos = Mapping[str, Mapping[str, Any]]  # of an ExportReport
TACOS_FPS = 29.4  # of every video in the published files, whose times are in frames


def charades(folder: Path, view: ExportView) -> None:
    """Write `charades_sta_SPLIT.txt`, a line `VIDEO START END##SENTENCE` a query, and `Charades_v1_SPLIT.csv`: durations."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, queries in view.queries.items():
        for query in queries:
            if re.search(r"##|[\r\n]", query.query):
                raise ValueError(
                    f"{query.annotation_id}: {query.query!r} has ## or a line's end in it, which lines of Charades-STA "
                    "cannot hold; --task activitynet writes JSON"
                )
        lines = [f"{view.name(q.video_id)} {q.start_s!r} {q.end_s!r}##{q.query}\n" for q in queries]
        (folder / f"charades_sta_{split}.txt").write_text("".join(lines), encoding="utf-8")
        with (folder / f"Charades_v1_{split}.csv").open("x", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["id", "length"])
            rows.writerows([name, view.durations_s[name]] for name in _by_video(view, split))


def charades_json(folder: Path, view: ExportView) -> None:
    """Write `charades.json`, `{VIDEO: {"duration": SECONDS}}`, where VSLNet looks for durations."""
    names = [name for split in view.queries for name in _by_video(view, split)]
    write_json(folder / "charades.json", {name: {"duration": view.durations_s[name]} for name in names})


def activitynet(folder: Path, view: ExportView, names: Mapping[str, str]) -> None:
    """Write `{VIDEO: {"duration", "timestamps": [[start, end], …], "sentences"}}` for each split, in its file by `names`."""
    for split in view.queries:
        write_json(
            folder / names[split],
            {
                name: {
                    "duration": view.durations_s[name],
                    "timestamps": [[q.start_s, q.end_s] for q in queries],
                    "sentences": [q.query for q in queries],
                }
                for name, queries in _by_video(view, split).items()
            },
        )


def tacos(folder: Path, view: ExportView) -> None:
    """Write `SPLIT.json`, `{"VIDEO.avi": {"timestamps": [[first, last frame], …], "fps", "num_frames", "sentences"}}`.

    Readers take off the suffix, or what is behind the last dot, so every name has it here whatever the features are called.
    """
    for split in view.queries:
        write_json(
            folder / f"{split}.json",
            {
                name.removesuffix(AVI) + AVI: {
                    "timestamps": [[_frames(q.start_s), _frames(q.end_s)] for q in queries],
                    "fps": TACOS_FPS,
                    "num_frames": _frames(view.durations_s[name]),
                    "sentences": [q.query for q in queries],
                }
                for name, queries in _by_video(view, split).items()
            },
        )


def moment_detr(data: Path, texts: Path, view: ExportView, *, qid_in_name: str) -> None:
    """Write `TASK_SPLIT_release.jsonl`, a query a line, and for each query a file, named by its number, with its words'
    vectors.

    Queries that are answers to one question are one line with several windows. Text files have `last_hidden_state` [L, D],
    the vectors of the words, and `pooler_output` [D], their mean.
    """
    vectors, number = cast(TrainingStore, view.store).vectors, 0
    texts.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    for split, queries in view.queries.items():
        lines = []
        for answers in _by_question(queries):
            query = answers[0]
            name = view.name(query.video_id)
            line = {"qid": number, "query": query.query, "duration": view.durations_s[name], "vid": name}
            lines.append({**line, "relevant_windows": [[q.start_s, q.end_s] for q in answers], "id": query.annotation_id})
            words = vectors[list(query.token_ids)]  # [L, D]
            with (texts / f"{qid_in_name}{number}.npz").open("xb") as file:
                np.savez(file, last_hidden_state=words, pooler_output=words.mean(axis=0))
            number += 1
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (data / f"{view.task}_{split}_release.jsonl").write_text(text, encoding="utf-8")


def tmlga(folder: Path, view: ExportView, videos: Videos, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Write a list of queries for each split, with tokens, and with places in rows counted from our number of rows.

    A moment that begins behind the last row is left out, since TMLGA would stop there; a remark with the ids is returned.
    """
    beyond = []
    for split, queries in view.queries.items():
        rows: list[dict[str, Any]] = []
        for query in queries:
            row = _tmlga_row(query, view, videos)
            if math.floor(row["feature_start"]) < row["number_features"]:
                rows.append({"id": len(rows), **row})
            else:
                beyond.append(query.annotation_id)
        write_json(folder / names[split], rows)
    return {"moments behind the last row, which were left out": beyond} if beyond else {}


def _tmlga_row(query: Query, view: ExportView, videos: Videos) -> dict[str, Any]:
    name = view.name(query.video_id)
    video, facts = videos[name], view.store[query.video_id].facts
    # A frame count and a rate whose ratio is the video's length; if no frames are known, a frame is a row.
    has_frames = "num_frames" in facts and "fps" in facts
    frames = int(facts["num_frames"]) if has_frames else video["rows"]
    fps = float(facts["fps"]) if has_frames else video["rows"] / video["duration_s"]
    rows_per_frame = video["rows"] / frames
    return {
        "video": name,
        "time_start": query.start_s,
        "time_end": query.end_s,
        "frame_start": query.start_s * fps,
        "frame_end": query.end_s * fps,
        "feature_start": query.start_s * fps * rows_per_frame,
        "feature_end": query.end_s * fps * rows_per_frame,
        "description": query.query,
        "number_features": video["rows"],
        "number_frames": frames,
        "fps": fps,
        "tokens": list(query.tokens),
    }


def _by_video(view: ExportView, split: str) -> dict[str, list[Query]]:
    """The queries of a split by the name of their video."""
    queries: dict[str, list[Query]] = {}
    for query in view.queries[split]:
        queries.setdefault(view.name(query.video_id), []).append(query)
    return queries


def _by_question(queries: list[Query]) -> list[list[Query]]:
    """Queries with the same `query_id` together, in the order of their first; those without one alone."""
    questions: dict[str, list[Query]] = {}
    for query in queries:
        questions.setdefault(query.key, []).append(query)
    return list(questions.values())


def _frames(seconds: float) -> float:
    frames = round(seconds * TACOS_FPS, 4)
    return int(frames) if frames.is_integer() else frames


def write_json(path: Path, value: object) -> None:
    """Write JSON to a file, and make its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
