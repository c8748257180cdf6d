"""Moment-DETR's JSON lines (QVHighlights, lighthouse's Charades-STA, TACoS and ActivityNet): read them as moments.

    {"qid": 8737, "query": "a man cooks", "duration": 126, "vid": "NUsG9BgSes0_210.0_360.0", "relevant_windows": [[14, 22]]}

Times are seconds. A query may have several windows: each is a moment, and all have the same `query_id`. Other keys
(`relevant_clip_ids`, `saliency_scores`) are not read. QVHighlights withholds the windows of its test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def _moments(record: dict[str, Any], split: str, path: Path, line_number: int) -> list[Moment]:
    """Return the windows of one line, at least one."""
    place = f"{path}:{line_number}"
    qid = get(record, "qid", object, place)
    if isinstance(qid, bool) or not isinstance(qid, int | str) or qid == "":
        raise ValueError(f"{place}: 'qid' is {describe(qid)}; expected a number or a name")
    if "relevant_windows" not in record:
        raise ValueError(
            f"{place}: no 'relevant_windows'; is it a test split whose answers are withheld? It can be neither trained on "
            "nor evaluated on"
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
