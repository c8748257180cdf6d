"""Annotations in the forms that other trainers read: those of Charades-STA, ActivityNet Captions, TACoS, Moment-DETR, TMLGA.

All functions read `content.written`, so the features are written before. Names of splits are train, val and test.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from excl.pipeline.exchange.export_view import AVI, ExportView
from excl.pipeline.store.training_store import Query, TrainingStore

TACOS_FPS = 29.4  # of every video in the published files, whose times are in frames


def charades(folder: Path, content: ExportView) -> None:
    """`charades_sta_SPLIT.txt`, a line `VIDEO START END##SENTENCE` a query; `Charades_v1_SPLIT.csv`: durations."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, queries in content.queries.items():
        for query in queries:
            if re.search(r"##|[\r\n]", query.query):
                raise ValueError(
                    f"{query.annotation_id}: {query.query!r} has ## or a line's end in it, which lines of Charades-STA "
                    "cannot hold; --task activitynet writes JSON"
                )
        lines = [f"{content.name(q.video_id)} {q.start_s!r} {q.end_s!r}##{q.query}\n" for q in queries]
        (folder / f"charades_sta_{split}.txt").write_text("".join(lines), encoding="utf-8")
        with (folder / f"Charades_v1_{split}.csv").open("x", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["id", "length"])
            rows.writerows([name, content.durations_s[name]] for name in _names(content, split))


def charades_json(folder: Path, content: ExportView) -> None:
    """`charades.json`, `{VIDEO: {"duration": SECONDS}}`, where VSLNet looks for durations."""
    named = {name: {"duration": content.durations_s[name]} for split in content.queries for name in _names(content, split)}
    write_json(folder / "charades.json", named)


def activitynet(folder: Path, content: ExportView, names: Mapping[str, str]) -> None:
    """`{VIDEO: {"duration", "timestamps": [[start, end], …], "sentences"}}` for each split, in its file by `names`."""
    for split in content.queries:
        write_json(
            folder / names[split],
            {
                name: {
                    "duration": content.durations_s[name],
                    "timestamps": [[q.start_s, q.end_s] for q in queries],
                    "sentences": [q.query for q in queries],
                }
                for name, queries in _by_video(content, split).items()
            },
        )


def tacos(folder: Path, content: ExportView) -> None:
    """`SPLIT.json`, `{"VIDEO.avi": {"timestamps": [[first, last frame], …], "fps", "num_frames", "sentences"}}`.

    Readers take off the suffix, or what is behind the last dot, so every name has it here whatever the features are called.
    """
    for split in content.queries:
        write_json(
            folder / f"{split}.json",
            {
                name.removesuffix(AVI) + AVI: {
                    "timestamps": [[_frames(q.start_s), _frames(q.end_s)] for q in queries],
                    "fps": TACOS_FPS,
                    "num_frames": _frames(content.durations_s[name]),
                    "sentences": [q.query for q in queries],
                }
                for name, queries in _by_video(content, split).items()
            },
        )


def moment_detr(data: Path, texts: Path, content: ExportView, *, qid_in_name: str) -> None:
    """`TASK_SPLIT_release.jsonl`, a query a line, and a file with its words' vectors for each, called by its number.

    Queries that are answers to one question are one line with several windows. Text files have `last_hidden_state` [L, D],
    the vectors of the words, and `pooler_output` [D], their mean.
    """
    assert isinstance(content.store, TrainingStore)
    vectors, number = content.store.vectors, 0
    texts.mkdir(parents=True, exist_ok=True)
    for split, queries in content.queries.items():
        lines = []
        for group in _by_question(queries):
            first = group[0]
            name = content.name(first.video_id)
            line = {"qid": number, "query": first.query, "duration": content.durations_s[name], "vid": name}
            lines.append({**line, "relevant_windows": [[q.start_s, q.end_s] for q in group], "id": first.annotation_id})
            words = vectors[list(first.token_ids)]  # [L, D]
            with (texts / f"{qid_in_name}{number}.npz").open("xb") as file:
                np.savez(file, last_hidden_state=words, pooler_output=words.mean(axis=0))
            number += 1
        data.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (data / f"{content.task}_{split}_release.jsonl").write_text(text, encoding="utf-8")


def tmlga(folder: Path, content: ExportView, names: Mapping[str, str]) -> None:
    """A list of queries for each split, with tokens, and with places in rows that are counted from our number of rows.

    A moment that begins behind the last row is left out: TMLGA would stop there.
    """
    for split, queries in content.queries.items():
        found: list[dict[str, Any]] = []
        for query in queries:
            row = _tmlga_row(query, content)
            if math.floor(row["feature_start"]) < row["number_features"]:
                found.append({"id": len(found), **row})
            else:
                content.remarks.setdefault("moments behind the last row, which were left out", []).append(
                    query.annotation_id
                )
        write_json(folder / names[split], found)


def _tmlga_row(query: Query, content: ExportView) -> dict[str, Any]:
    name = content.name(query.video_id)
    video, facts = content.written[name], content.store[query.video_id].facts
    # A frame count and a rate whose ratio is the video's length; where no frames are known, a frame is a row.
    known = "num_frames" in facts and "fps" in facts
    frames = int(facts["num_frames"]) if known else video["rows"]
    fps = float(facts["fps"]) if known else video["rows"] / video["duration_s"]
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


def _by_video(content: ExportView, split: str) -> dict[str, list[Query]]:
    found: dict[str, list[Query]] = {}
    for query in content.queries[split]:
        found.setdefault(content.name(query.video_id), []).append(query)
    return found


def _by_question(queries: list[Query]) -> list[list[Query]]:
    """Queries with the same `query_id` together, in the order of the first; those without one alone."""
    found: dict[object, list[Query]] = {}
    for number, query in enumerate(queries):
        found.setdefault(query.query_id or number, []).append(query)
    return list(found.values())


def _names(content: ExportView, split: str) -> list[str]:
    return list(_by_video(content, split))


def _frames(seconds: float) -> float:
    frames = round(seconds * TACOS_FPS, 4)
    return int(frames) if frames.is_integer() else frames


def write_json(path: Path, value: object) -> None:
    """Write JSON in a file of a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
