"""The parts that all readers of annotation files share. Every error names the file and the place in it."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")  # NUL ends an HDF5 string, half a surrogate pair has no UTF-8

T = TypeVar("T")


def annotation_id(split: str, path: Path, row: object) -> str:
    """Return the id of a row by the rule in `moments.py`."""
    return f"{split}:{path.stem}:{row}"


def one_line(query: str) -> str:
    """Return the query without surrounding whitespace, each line break and the whitespace around it folded to one space."""
    return re.sub(r"\s*[\r\n]\s*", " ", query.strip())


def query_fields(text: str) -> dict[str, str]:
    """Return the fields of a moment for a query in a file: `query` in one line, `raw_query` where that changes it."""
    query = one_line(text)
    return {"query": query} if query == text else {"query": query, "raw_query": text}


def printable(text: str) -> str:
    """Return a name or a text from a file for a terminal, with escapes for characters that cannot be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def storable(text: str) -> bool:
    """Return whether a text can be written as UTF-8 and as an HDF5 string."""
    return _NOT_STORABLE.search(text) is None


def read_text(path: Path) -> str:
    """Return the text of a file without a byte order mark; raises ValueError with the line where it is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line_number}: byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from error


def read_lines(path: Path, *, comment: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of every line that is not blank; only line feeds end a line, not U+2028 and its kin.

    Lines that begin with `comment`, if that is given, are left out too.
    """
    for line_number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip() and not (comment and line.lstrip().startswith(comment)):
            yield line_number, line.rstrip("\r")


def read_table(path: Path, check_columns: Callable[[list[str]], object]) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Yield line number (from 1, the last one of the row) and fields of every row of a table with a line of column names.

    Fields are separated by commas, semicolons or tabs. `check_columns` is called with the names before the first row.
    """
    text = read_text(path)
    header = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    try:
        check_columns(list(reader.fieldnames or ()))
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: cannot be read as a table: {error}") from error


def parse_object(text: str, path: Path, line_number: int = 1) -> dict[str, Any]:
    """Return the JSON object in a text that begins on that line; raises ValueError if it is not one, or has a key twice."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        place = f"{path}:{line_number - 1 + error.lineno}"
        raise ValueError(f"{place}: cannot be read as JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a repeated key; a number of 5,000 digits; 10,000 brackets
        raise ValueError(f"{path}:{line_number}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}:{line_number}: found {describe(value)} where a JSON object {{...}} is expected")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; raises ValueError for a repeated key, of which Python would silently keep the last."""
    result = dict(pairs)
    if len(result) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"one object has the key {key!r} {count} times")
    return result


def get(record: Mapping[str, Any], key: str, kind: type[T], place: str) -> T:
    """Return the value of a key, of that very type; raises ValueError if it is missing or of another type."""
    if key not in record:
        raise ValueError(f"{place}: no {key!r}; found the keys {shortened(sorted(record))}")
    value = record[key]
    if not isinstance(value, kind):
        raise ValueError(f"{place}: {key!r} is {describe(value)}; expected {kind.__name__}")
    return value


def get_number(record: Mapping[str, Any], key: str, place: str) -> float:
    """Return the value of a key by the rule of `number`."""
    return number(get(record, key, object, place), repr(key), place)


def get_positive(record: Mapping[str, Any], key: str, place: str) -> float:
    """Return the value of a key by the rule of `positive`."""
    return positive(get(record, key, object, place), repr(key), place)


def shortened(items: Sequence[T], *, most: int = 6, describe: Callable[[T], str] = repr) -> str:
    """Return the first items of a list in words, for a message, and how many more there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(map(describe, items[:most])) + more


def number(value: object, name: str, place: str) -> float:
    """Return a JSON number as a float, NaN and infinities included; raises ValueError for anything else, even true."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place}: {name} is {describe(value)}; expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{place}: {name} has {len(str(value))} digits; expected a number of seconds or frames") from error


def positive(value: object, name: str, place: str) -> float:
    """Return a JSON number that is finite and above 0; raises ValueError for anything else."""
    result = number(value, name, place)
    if not (math.isfinite(result) and result > 0):
        raise ValueError(f"{place}: {name} is {result:g}; expected a finite number above 0")
    return result


def parse_seconds(text: str, name: str, place: str) -> float:
    """Return the number in a text; raises ValueError if it is not one."""
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{place}: {name} is {text[:60]!r}; expected a number of seconds, such as 12.5") from error


def read_videos(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield key, place for messages, and record of every video in a file `{video: {...}, ...}`."""
    for key, record in parse_object(read_text(path), path).items():
        place = f"{path}: {key}"
        if not isinstance(record, dict):
            raise ValueError(f"{place}: found {describe(record)} where an object with timestamps and sentences is expected")
        yield key, place, record


def annotated_spans(record: Mapping[str, Any], place: str, keys: tuple[str, str]) -> list[tuple[float, float, str]]:
    """Return start, end (in the file's unit) and sentence of all annotations in a record, by the keys of times and texts."""
    pairs, sentences = (get(record, key, list, place) for key in keys)
    if len(pairs) != len(sentences):
        raise ValueError(f"{place}: {len(pairs)} {keys[0]} but {len(sentences)} {keys[1]}; expected equally many")
    spans = []
    for index, (pair, sentence) in enumerate(zip(pairs, sentences, strict=True)):
        if not isinstance(sentence, str):
            raise ValueError(f"{place}[{index}]: the sentence is {describe(sentence)}; expected a string")
        spans.append((*start_and_end(pair, "the timestamp", f"{place}[{index}]"), sentence))
    return spans


def start_and_end(value: object, name: str, place: str) -> tuple[float, float]:
    """Return the two numbers of a JSON list; raises ValueError if it is not such a list."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{place}: {name} is {describe(value)}; expected [start, end]")
    return number(value[0], "the start", place), number(value[1], "the end", place)


def describe(value: object) -> str:
    """Return a value from a file for an error message, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
