"""Moment-DETR's JSON lines (QVHighlights, lighthouse's Charades-STA, TACoS and ActivityNet): read them as moments.

    {"qid": 8737, "query": "a man cooks", "duration": 126, "vid": "NUsG9BgSes0_210.0_360.0", "relevant_windows": [[14, 22]]}

Times are seconds. A query may have several windows: each is a moment, and all have the same `query_id`. `load_saliency`
reads `relevant_clip_ids` and `saliency_scores`, which QVHighlights has, too. The answers of its test split were
withheld until 2026-03-08; since then they are in `highlight_test_with_gt.jsonl`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import (
    annotation_id,
    describe,
    get,
    get_positive,
    parse_object,
    query_fields,
    read_lines,
    start_and_end,
)


def load(path: Path, *, split: str) -> list[Moment]:
    """Return every window of every line as a moment, unfiltered, in the file's order; ValueErrors name file and line."""
    moments: list[Moment] = []
    line_by_query: dict[str, int] = {}
    for line_number, line in read_lines(path):
        answers = _moments(parse_object(line, path, line_number), split, path, line_number)
        first_line = line_by_query.setdefault(answers[0].query_id, line_number)
        if first_line != line_number:
            raise ValueError(f"{path}:{line_number}: its qid is that of line {first_line} too; each query needs its own")
        moments += answers
    return moments


def load_saliency(path: Path, *, clip_s: float) -> dict[str, np.ndarray]:
    """Return the annotated saliency by qid, float64 [clips, annotators] for clips of `clip_s` seconds; {} if there is none.

    A clip that nobody found relevant has the score 0. ValueErrors name file and line.
    """
    saliency = {}
    for line_number, line in read_lines(path):
        place = f"{path}:{line_number}"
        record = parse_object(line, path, line_number)
        if "saliency_scores" not in record:
            continue
        clips, scores = (get(record, key, list, place) for key in ("relevant_clip_ids", "saliency_scores"))
        num_clips = int(get_positive(record, "duration", place) / clip_s)
        try:
            rows = np.array(scores, dtype=np.float64).reshape(len(clips), -1)
            of_clips = np.zeros((num_clips, rows.shape[1]))
            of_clips[np.array(clips, dtype=np.int64)] = rows
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"{place}: 'saliency_scores' and 'relevant_clip_ids' do not fit each other or the {num_clips} clips of the "
                f"video ({error}); expected a row of scores for every relevant clip"
            ) from error
        saliency[str(record["qid"])] = of_clips
    return saliency


def _moments(record: dict[str, Any], split: str, path: Path, line_number: int) -> list[Moment]:
    """Return the windows of one line, at least one."""
    place = f"{path}:{line_number}"
    qid = get(record, "qid", object, place)
    if isinstance(qid, bool) or not isinstance(qid, int | str) or qid == "":
        raise ValueError(f"{place}: 'qid' is {describe(qid)}; expected a number or a name")
    if "relevant_windows" not in record:
        raise ValueError(
            f"{place}: no 'relevant_windows'; is it a test split without its answers? It can be neither trained on nor "
            "evaluated on. QVHighlights has them in highlight_test_with_gt.jsonl"
        )
    windows = get(record, "relevant_windows", list, place)
    if not windows:
        raise ValueError(f"{place}: 'relevant_windows' is empty; a query needs an answer, or leave the line out")
    moments = []
    for index, window in enumerate(windows):
        start_s, end_s = start_and_end(window, f"window {index}", place)
        row = qid if len(windows) == 1 else f"{qid}:{index}"
        moments.append(
            Moment(
                annotation_id=annotation_id(split, path, row),
                query_id=annotation_id(split, path, qid),
                video_id=get(record, "vid", str, place),
                **query_fields(get(record, "query", str, place)),
                start_s=start_s,
                end_s=end_s,
                duration_s=get_positive(record, "duration", place),
                split=split,
                source=f"{path.name}:{line_number}" + (f"[{index}]" if len(windows) > 1 else ""),
            )
        )
    return moments
