"""JSON lines, the format for a data set of one's own: reads a file with one object a line, leaves moments.

    {"video_id": "kitchen_12", "query": "a person opens the door.", "start_s": 3.2, "end_s": 7.9}

Those four keys are required. Optional: "duration_s" (length of the whole video, number or null), "annotation_id",
"split", and "group" (a label by which tables of results are split). Other keys are refused by name, so that a misspelt
one is not lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from excl.datasets.moments import Moment
from excl.datasets.parsing import annotation_id, get, number, one_line, parse_object, positive, read_lines, shortened

REQUIRED = ("video_id", "query", "start_s", "end_s")
OPTIONAL = ("duration_s", "annotation_id", "split", "group")


def load(path: Path, *, split: str | None) -> list[Moment]:
    """Every row as a moment, unfiltered, in the file's order; blank lines are no rows.

    With a `split`, all rows belong to it and a row that names another one is an error; with None every row must name
    its own. ValueError names the file and line it cannot read, or that repeats an `annotation_id`.
    """
    moments = []
    line_by_id: dict[str, int] = {}
    for line_number, line in read_lines(path):
        where = f"{path}:{line_number}"
        moment = _moment(parse_object(line, path, line_number), split, path, line_number)
        first_line = line_by_id.setdefault(moment.annotation_id, line_number)
        if first_line != line_number:
            raise ValueError(
                f"{where}: annotation_id {moment.annotation_id!r} is that of line {first_line} too; each needs its own"
            )
        moments.append(moment)
    return moments


def _moment(record: dict[str, Any], split: str | None, path: Path, line_number: int) -> Moment:
    """The moment of one line."""
    where = f"{path}:{line_number}"
    unknown = sorted(set(record) - {*REQUIRED, *OPTIONAL})
    if unknown:
        raise ValueError(f"{where}: unknown keys {shortened(unknown)}; wanted {[*REQUIRED]} and, if any, of {[*OPTIONAL]}")
    row_split = _split_of(record, split, where)
    duration = record.get("duration_s")
    own_id = "annotation_id" in record
    return Moment(
        annotation_id=get(record, "annotation_id", str, where) if own_id else annotation_id(row_split, path, line_number),
        video_id=get(record, "video_id", str, where),
        query=one_line(get(record, "query", str, where)),
        start_s=number(get(record, "start_s", object, where), "'start_s'", where),
        end_s=number(get(record, "end_s", object, where), "'end_s'", where),
        duration_s=None if duration is None else positive(duration, "'duration_s'", where),
        split=row_split,
        source=f"{path.name}:{line_number}",
        group=get(record, "group", str, where) if "group" in record else "",
    )


def _split_of(record: dict[str, Any], split: str | None, where: str) -> str:
    """The split of a row, which the caller and the row may both name if they agree."""
    if split is not None and "split" not in record:
        return split
    row_split = get(record, "split", str, where)
    if split is not None and row_split != split:
        raise ValueError(
            f"{where}: the row says split {row_split!r}, but the file is read as {split!r}; "
            "make it a file a split, or let every row name its own and give none"
        )
    return row_split
