"""Moment-DETR's JSON lines (QVHighlights, lighthouse's Charades-STA, TACoS and ActivityNet): leaves moments.

    {"qid": 8737, "query": "a man cooks", "duration": 126, "vid": "NUsG9BgSes0_210.0_360.0", "relevant_windows": [[14, 22]]}

Times are seconds. A query may have several windows: each is a moment, and all have the same `query_id`. Other keys
(`relevant_clip_ids`, `saliency_scores`) are not read. QVHighlights withholds the windows of its test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import annotation_id, describe, get, number, parse_object, positive, query_fields, read_lines


def load(path: Path, *, split: str) -> list[Moment]:
    """Every window of every line as a moment, unfiltered, in the file's order; ValueError names the file and line."""
    moments: list[Moment] = []
    line_by_query: dict[str, int] = {}
    for line_number, line in read_lines(path):
        answers = _moments(parse_object(line, path, line_number), split, path, line_number)
        first = line_by_query.setdefault(answers[0].query_id, line_number)
        if first != line_number:
            raise ValueError(f"{path}:{line_number}: its qid is that of line {first} too; each query needs its own")
        moments += answers
    return moments


def _moments(record: dict[str, Any], split: str, path: Path, line_number: int) -> list[Moment]:
    """The windows of one line, at least one."""
    where = f"{path}:{line_number}"
    qid = get(record, "qid", object, where)
    if isinstance(qid, bool) or not isinstance(qid, int | str) or qid == "":
        raise ValueError(f"{where}: 'qid' is {describe(qid)}; wanted a number or a name")
    if "relevant_windows" not in record:
        raise ValueError(
            f"{where}: no 'relevant_windows'; is it a test split whose answers are withheld? It can be neither trained on "
            "nor evaluated on"
        )
    windows = get(record, "relevant_windows", list, where)
    if not windows:
        raise ValueError(f"{where}: 'relevant_windows' is empty; a query needs an answer, or leave the line out")
    moments = []
    for index, window in enumerate(windows):
        if not isinstance(window, list) or len(window) != 2:
            raise ValueError(f"{where}: window {index} is {describe(window)}; wanted [start, end]")
        row = qid if len(windows) == 1 else f"{qid}:{index}"
        moments.append(
            Moment(
                annotation_id=annotation_id(split, path, row),
                query_id=annotation_id(split, path, qid),
                video_id=get(record, "vid", str, where),
                **query_fields(get(record, "query", str, where)),
                start_s=number(window[0], "the start", where),
                end_s=number(window[1], "the end", where),
                duration_s=positive(get(record, "duration", object, where), "'duration'", where),
                split=split,
                source=f"{path.name}:{line_number}" + (f"[{index}]" if len(windows) > 1 else ""),
            )
        )
    return moments
