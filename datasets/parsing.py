"""Reading annotation files: what the adapters share. Every error names the file and the place in it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")  # NUL ends an HDF5 string, half a surrogate pair has no UTF-8

T = TypeVar("T")


def annotation_id(split: str, path: Path, row: object) -> str:
    """The id of a row by the rule in `moments.py`."""
    return f"{split}:{path.stem}:{row}"


def one_line(query: str) -> str:
    """The query without surrounding whitespace, every line break and the whitespace around it folded to one space."""
    return re.sub(r"\s*[\r\n]\s*", " ", query.strip())


def query_fields(text: str) -> dict[str, str]:
    """A query as a file has it as the fields of a moment: `query` in one line, `raw_query` where that changes it."""
    query = one_line(text)
    return {"query": query} if query == text else {"query": query, "raw_query": text}


def printable(text: str) -> str:
    """A name or a text from a file for a terminal: what cannot be printed as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def storable(text: str) -> bool:
    """Whether a text can be written as UTF-8 and as an HDF5 string."""
    return _NOT_STORABLE.search(text) is None


def read_text(path: Path) -> str:
    """The whole file, a byte order mark removed; ValueError with the line where it is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line_number}: byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from error


def read_lines(path: Path, *, comment: str | None = None) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank; only line feeds end a line, not U+2028 and its kin.

    Lines that begin with `comment`, where there is such a thing, are left out too.
    """
    for line_number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip() and not (comment and line.lstrip().startswith(comment)):
            yield line_number, line.rstrip("\r")


def parse_object(text: str, path: Path, line_number: int = 1) -> dict[str, Any]:
    """The JSON object in a text that begins on that line; ValueError where it is none, or names a key twice."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        where = f"{path}:{line_number - 1 + error.lineno}"
        raise ValueError(f"{where}: cannot be read as JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a repeated key; a number of 5,000 digits; 10,000 brackets
        raise ValueError(f"{path}:{line_number}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}:{line_number}: found {describe(value)} where a JSON object {{...}} is wanted")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; ValueError for a repeated key, of which Python's reader would silently keep the last."""
    result = dict(pairs)
    if len(result) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"one object has the key {key!r} {count} times")
    return result


def get(record: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    """The value of a key, of that very type; ValueError where it is missing or of another type."""
    if key not in record:
        raise ValueError(f"{where}: no {key!r}; found the keys {shortened(sorted(record))}")
    value = record[key]
    if not isinstance(value, kind):
        raise ValueError(f"{where}: {key!r} is {describe(value)}; wanted {kind.__name__}")
    return value


def shortened(names: list[str]) -> str:
    """The first names of a list for an error message."""
    return ", ".join(repr(name) for name in names[:6]) + (f" and {len(names) - 6:,} more" if len(names) > 6 else "")


def first_names(names: Sequence[str], shown: int = 5) -> str:
    """The first names of a list for people, with an ellipsis if there are more."""
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")


def number(value: object, what: str, where: str) -> float:
    """A JSON number as a float, NaN and infinities included; ValueError for anything else, true and false among it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {what} is {describe(value)}; wanted a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{where}: {what} has {len(str(value))} digits; wanted a number of seconds or frames") from error


def positive(value: object, what: str, where: str) -> float:
    """A JSON number that is finite and above 0; ValueError for anything else."""
    result = number(value, what, where)
    if not (math.isfinite(result) and result > 0):
        raise ValueError(f"{where}: {what} is {result:g}; wanted a finite number above 0")
    return result


def read_videos(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Key, place for messages, and record of every video in a file `{video: {...}, ...}`."""
    for key, record in parse_object(read_text(path), path).items():
        where = f"{path}: {key}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: found {describe(record)} where an object with timestamps and sentences is wanted")
        yield key, where, record


def annotated_spans(record: Mapping[str, Any], where: str) -> list[tuple[float, float, str]]:
    """Start, end (in the file's unit) and sentence of every annotation in a record with `timestamps` and `sentences`."""
    pairs = get(record, "timestamps", list, where)
    sentences = get(record, "sentences", list, where)
    if len(pairs) != len(sentences):
        raise ValueError(f"{where}: {len(pairs)} timestamps but {len(sentences)} sentences; wanted one of each a moment")
    spans = []
    for index, (pair, sentence) in enumerate(zip(pairs, sentences, strict=True)):
        here = f"{where}[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{here}: the timestamp is {describe(pair)}; wanted [start, end]")
        if not isinstance(sentence, str):
            raise ValueError(f"{here}: the sentence is {describe(sentence)}; wanted a string")
        spans.append((number(pair[0], "the start", here), number(pair[1], "the end", here), sentence))
    return spans


def describe(value: object) -> str:
    """A value from a file for an error message, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
