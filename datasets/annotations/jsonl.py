"""JSON lines, the format for your own data set: read a file with one object a line as moments.

    {"video_id": "kitchen_12", "query": "a person opens the door.", "start_s": 3.2, "end_s": 7.9}

Those four keys are required. Optional: "duration_s" (length of the whole video, number or null), "annotation_id",
"split" (train, if it is nowhere said), "group" (a label by which tables of results are split), and "query_id" (moments with
the same one are alternative answers to one query). Other keys are refused by name, so that a misspelt one is not lost.
Lines that begin with # are comments. `csv_table` reads the same from a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import (
    annotation_id,
    get,
    get_number,
    get_positive,
    parse_object,
    query_fields,
    read_lines,
    shortened,
)

REQUIRED = ("video_id", "query", "start_s", "end_s")
OPTIONAL = ("duration_s", "annotation_id", "split", "group", "query_id")


def load(path: Path, *, split: str | None) -> list[Moment]:
    """Return every row as a moment, unfiltered, in the file's order; blank lines and comments are no rows.

    With a `split`, all rows belong to it and a row that names another one is an error; with None every row may name its own,
    and is of `train` if it does not. Raises ValueError, naming file and line, for a row that cannot be read, or that repeats
    an `annotation_id`.
    """
    rows = ((number, parse_object(line, path, number)) for number, line in read_lines(path, comment="#"))
    return make_moments(rows, path, split)


def make_moments(rows: Iterable[tuple[int, dict[str, Any]]], path: Path, split: str | None) -> list[Moment]:
    """Return a moment for every numbered row of a file with the keys above; raises ValueError as `load` does."""
    moments = []
    line_by_id: dict[str, int] = {}
    for line_number, row in rows:
        moment = _moment(row, split, path, line_number)
        first_line = line_by_id.setdefault(moment.annotation_id, line_number)
        if first_line != line_number:
            raise ValueError(
                f"{path}:{line_number}: annotation_id {moment.annotation_id!r} is that of line {first_line} too; "
                "each needs its own"
            )
        moments.append(moment)
    return moments


def _moment(record: dict[str, Any], split: str | None, path: Path, line_number: int) -> Moment:
    """Return the moment of one line."""
    place = f"{path}:{line_number}"
    unknown = sorted(set(record) - {*REQUIRED, *OPTIONAL})
    if unknown:
        hint = "; Moment-DETR's format is --dataset moment-detr" if "relevant_windows" in record else ""
        raise ValueError(
            f"{place}: unknown keys {shortened(unknown)}; expected {[*REQUIRED]} and, if any, of {[*OPTIONAL]}{hint}"
        )
    row_split = _find_split(record, split, place)
    has_id, has_duration = "annotation_id" in record, record.get("duration_s") is not None
    return Moment(
        annotation_id=get(record, "annotation_id", str, place) if has_id else annotation_id(row_split, path, line_number),
        video_id=get(record, "video_id", str, place),
        **query_fields(get(record, "query", str, place)),
        start_s=get_number(record, "start_s", place),
        end_s=get_number(record, "end_s", place),
        duration_s=get_positive(record, "duration_s", place) if has_duration else None,
        split=row_split,
        source=f"{path.name}:{line_number}",
        group=get(record, "group", str, place) if "group" in record else "",
        query_id=get(record, "query_id", str, place) if "query_id" in record else "",
    )


def _find_split(record: dict[str, Any], split: str | None, place: str) -> str:
    """Return the split of a row, which the caller and the row may both name if they agree."""
    if "split" not in record:
        return split or "train"
    row_split = get(record, "split", str, place)
    if split is not None and row_split != split:
        raise ValueError(
            f"{place}: the row says split {row_split!r}, but the file is read as {split!r}; "
            "make one file for each split, or let every row name its own and give none"
        )
    return row_split
