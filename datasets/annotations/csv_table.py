"""A table, the other format for a data set of one's own: the rows of `jsonl` as CSV with a line of column names.

    video_id,query,start_s,end_s
    kitchen_12,a person opens the door.,3.2,7.9

Columns may be separated by commas, semicolons or tabs. The names are those of `jsonl`; an empty field is one that is not
there. Times are numbers with a point.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from excl.datasets.annotations.jsonl import REQUIRED, moments_of
from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import read_text

NUMBERS = ("start_s", "end_s", "duration_s")


def load(path: Path, *, split: str | None) -> list[Moment]:
    """Every row as a moment, unfiltered, in the file's order; `split` and errors as in `jsonl.load`."""
    return moments_of(_rows(path), path, split)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line (from 1, the last one of the row) and the fields of every row, numbers as numbers."""
    text = read_text(path)
    first = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        columns = list(reader.fieldnames or ())
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            raise ValueError(f"{path}:1: the columns are {columns}, without {missing}; the first line has to name them")
        if len(set(columns)) < len(columns):
            raise ValueError(f"{path}:1: the columns are {columns}; each name may be there once")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not any(row.values()):  # spreadsheets leave such rows at the end
                continue
            if None in row:
                raise ValueError(f"{where}: more fields than the first line has columns; is a comma not in quotes?")
            there = {name: text for name, text in row.items() if text or (name == "query" and text is not None)}
            yield reader.line_num, {name: _value(name, text, where) for name, text in there.items()}
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: cannot be read as a table: {error}") from error


def _value(name: str, text: str, where: str) -> Any:
    if name not in NUMBERS:
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(
            f"{where}: {name!r} is {text[:60]!r}; wanted a number of seconds with a point, such as 12.5"
        ) from error
