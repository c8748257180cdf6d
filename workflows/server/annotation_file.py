"""A JSON-lines file of annotations that is edited one moment at a time, and keeps everything else as it is.

Lines that no change concerns stay as they are, byte for byte: comments, blank lines, lines that cannot be read, videos of
other folders. In a changed line the other fields stay. A change is on the disk, whole, when its method returns; one that
another program has made since the file was last read is noticed and never overwritten.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from excl.datasets.annotations import jsonl
from excl.datasets.parsing import parse_object, storable
from excl.pipeline.artifacts.atomic_files import atomic_write
from excl.workflows.init import SAMPLE_QUERY

MAX_UNDO = 200
DECIMALS = 3  # of seconds: a millisecond is less than a frame
MAX_PARSED = 1 << 17  # lines that are not parsed again at the next change


class StaleError(ValueError):
    """The error that the file is not what whoever asked for a change has seen. It has been read again."""


class AnnotationRow(NamedTuple):
    """A moment in the file: the index of its line, and its fields as they are there."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class _Change:
    """Lines from `index` on that were `before` and are `after`."""

    index: int
    before: list[str]
    after: list[str]


class AnnotationFile:
    """The file. It need not exist; the first moment then makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # a link stays a link
        self._undo: list[_Change] = []
        self._content: bytes | None = None  # None where there is no file
        self._lines: list[str] = []
        self._load()

    @property
    def version(self) -> str:
        """A name of the file's content: the same content has the same."""
        return hashlib.sha256(self._content or b"").hexdigest()[:16]

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to take back."""
        return bool(self._undo)

    def refresh(self) -> None:
        """Read the file again if another program has changed it."""
        if self._read() != self._content:
            self._load()

    def rows(self) -> Iterator[AnnotationRow]:
        """Yield the moments with a real query: neither blank nor the sentence of an example."""
        for index, line in enumerate(self._lines):
            fields = _fields(line)
            if fields is not None and str(fields.get("query", "")).strip() not in ("", SAMPLE_QUERY):
                yield AnnotationRow(index, fields)

    def problems(self) -> list[str]:
        """Return what is wrong with lines that cannot be read, in words. They are kept."""
        problems = []
        for index in (index for index, line in enumerate(self._lines) if not _is_readable(line)):
            try:
                _check(self._lines[index], self.path, index)
            except ValueError as error:
                problems.append(str(error))
        return problems

    def add(self, video_id: str, query: str, start_s: float, end_s: float, duration_s: float | None) -> None:
        """Add a moment: after the others of its video, in place of the video's example, or at the end.

        Raises ValueError for a moment that the format refuses, OSError if it cannot be written.
        """
        rows = [row for row in self.rows() if row.fields.get("video_id") == video_id]
        fields: dict[str, Any] = {"video_id": video_id, **_checked(query, start_s, end_s, duration_s)}
        if duration_s is not None:
            fields["duration_s"] = round(duration_s, DECIMALS)  # as the times are: none that is inside gets outside
        for row in rows[-1:]:  # a video belongs into one split, and is as long as it was
            fields |= {key: row.fields[key] for key in ("duration_s", "split") if key in row.fields}
        example = next((index for index, line in enumerate(self._lines) if _is_example(line, video_id)), None)
        if example is not None:
            self._change(_Change(example, [self._lines[example]], [self._line(fields)]))
        else:
            self._change(_Change(rows[-1].line + 1 if rows else len(self._lines), [], [self._line(fields)]))

    def edit(self, line: int, query: str, start_s: float, end_s: float, duration_s: float | None) -> None:
        """Change the query and the times of the moment on a line; raises as `add` does."""
        fields = {**self._row(line).fields, **_checked(query, start_s, end_s, duration_s)}
        self._change(_Change(line, [self._lines[line]], [self._line(fields)]))

    def delete(self, line: int) -> None:
        """Remove the moment on a line."""
        self._row(line)
        self._change(_Change(line, [self._lines[line]], []))

    def undo(self) -> None:
        """Take the last change back; ValueError if there is none."""
        if not self._undo:
            raise ValueError("there is no change to take back")
        change = self._undo[-1]
        self._write(_Change(change.index, change.after, change.before))
        self._undo.pop()

    def _row(self, line: int) -> AnnotationRow:
        row = next((row for row in self.rows() if row.line == line), None)
        if row is None:
            raise StaleError(f"{self.path}: line {line + 1} holds no moment")
        return row

    def _change(self, change: _Change) -> None:
        self._write(change)
        self._undo = [*self._undo, change][-MAX_UNDO:]

    def _write(self, change: _Change) -> None:
        """Write the file with a change; StaleError if it is not as it was read, and it is read again."""
        after = change.index + len(change.before)
        lines = [*self._lines[: change.index], *change.after, *self._lines[after:]]
        lines = [line if line.endswith("\n") else line + self._ending for line in lines]
        content = "".join(lines).encode(errors="surrogateescape")
        with atomic_write(self.path) as temporary:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if self._content is not None and self.path.exists():
                shutil.copymode(self.path, temporary)
            if self._read() != self._content:
                self._load()
                raise StaleError(f"{self.path}: another program has changed it; it was read again, and nothing was written")
        self._content, self._lines = content, lines

    @property
    def _ending(self) -> str:
        """The end of a new line: that of the others."""
        return "\r\n" if {line[-2:] == "\r\n" for line in self._lines if line.endswith("\n")} == {True} else "\n"

    def _line(self, fields: Mapping[str, Any]) -> str:
        return json.dumps(fields, ensure_ascii=False) + self._ending

    def _load(self) -> None:
        content = self._read()
        if content is not None and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(f"{self.path}: the file is in UTF-16; save it as UTF-8, which is what excl reads and writes")
        # Bytes that are not UTF-8 come back as they were; only line feeds end a line.
        text = (content or b"").decode(errors="surrogateescape")
        self._content, self._lines = content, re.findall(r"[^\n]*\n|[^\n]+", text)
        self._undo.clear()

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None


def _parse(line: str, path: Path, index: int) -> dict[str, Any] | None:
    """Return the object in a line, None for a comment or a blank line; ValueError if it cannot be read."""
    text = line.removeprefix("\ufeff")
    return parse_object(text, path, index + 1) if text.strip() and not text.lstrip().startswith("#") else None


def _check(line: str, path: Path, index: int) -> None:
    """Raise ValueError, naming the place, for a line that `excl tokenise` would refuse."""
    fields = _parse(line, path, index)
    jsonl.make_moments([] if fields is None else [(index + 1, fields)], path, None)


@functools.lru_cache(MAX_PARSED)
def _is_readable(line: str) -> bool:
    try:
        _check(line, Path(), 0)
    except ValueError:
        return False
    return True


@functools.lru_cache(MAX_PARSED)
def _fields(line: str) -> dict[str, Any] | None:
    """Return what `_parse` does, for reading only; None also for a line that cannot be read."""
    try:
        return _parse(line, Path(), 0)
    except ValueError:
        return None


def _is_example(line: str, video_id: str) -> bool:
    """Return whether a line is the commented example that `excl init` wrote for this video."""
    text = line.removeprefix("\ufeff").lstrip()
    fields = _fields(text[1:]) if text.startswith("#") else None
    return fields is not None and fields.get("video_id") == video_id and fields.get("query") == SAMPLE_QUERY


def _checked(query: str, start_s: float, end_s: float, duration_s: float | None) -> dict[str, Any]:
    """Return query and times as fields; ValueError for a moment without length, outside the video, or without a query."""
    query, start_s, end_s = " ".join(query.split()), round(start_s, DECIMALS), round(end_s, DECIMALS)
    if query in ("", SAMPLE_QUERY) or not storable(query):
        raise ValueError("the query: write what happens, in a sentence")
    if not (0 <= start_s < end_s and math.isfinite(end_s)):
        raise ValueError(f"a moment from {start_s:g} to {end_s:g} s: the start must be 0 or more, and before the end")
    if duration_s is not None and start_s >= duration_s:
        raise ValueError(f"a moment from {start_s:g} s on: the video ends at {duration_s:g} s")
    return {"query": query, "start_s": start_s, "end_s": end_s}
