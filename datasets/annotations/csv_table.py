"""A table, the other format for your own data set: the rows of `jsonl` as CSV with a line of column names.

    video_id,query,start_s,end_s
    kitchen_12,a person opens the door.,3.2,7.9

Columns may be separated by commas, semicolons or tabs. The names are those of `jsonl`; an empty field is one that is not
there. Times are numbers with a point.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from excl.datasets.annotations.jsonl import REQUIRED, make_moments
from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import parse_seconds, read_table

NUMBERS = ("start_s", "end_s", "duration_s")


def load(path: Path, *, split: str | None) -> list[Moment]:
    """Return every row as a moment, unfiltered, in the file's order; `split` and errors as in `jsonl.load`."""
    return make_moments(_rows(path), path, split)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and fields of every row, numbers as numbers."""

    def check_columns(columns: list[str]) -> None:
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            raise ValueError(f"{path}:1: the columns are {columns}, without {missing}; the first line has to name them")
        if len(set(columns)) < len(columns):
            raise ValueError(f"{path}:1: the columns are {columns}; each name may be there once")

    for line_number, row in read_table(path, check_columns):
        place = f"{path}:{line_number}"
        if not any(row.values()):  # spreadsheets leave such rows at the end
            continue
        if None in row:
            raise ValueError(f"{place}: more fields than the first line has columns; is a comma not in quotes?")
        fields = {name: text for name, text in row.items() if text or (name == "query" and text is not None)}
        yield (
            line_number,
            {name: parse_seconds(text, repr(name), place) if name in NUMBERS else text for name, text in fields.items()},
        )
