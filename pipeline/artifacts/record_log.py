"""The records of a stage folder: lines of JSON with a checksum each, found by id and parsed when they are asked for.

A folder of a million videos has a gigabyte of them. What is kept in memory is where each line stands, and which say that
something went wrong: some 200 bytes a record.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, MutableMapping, Set
from pathlib import Path
from typing import Any, BinaryIO

Record = dict[str, Any]

CRC = b', "crc32": "%08x"}'
_END = len(CRC % 0) + 1
_ID = b'{"id": "'
_NONE: Set[str] = frozenset()
_LENGTH_BITS = 40  # a line is shorter than 2^40 bytes
NOTED = frozenset({"error", "damage"})  # keys by which records are found without being parsed


def encode(record: Mapping[str, Any]) -> bytes:
    """The line of a record, which ends with a crc32 of the rest."""
    content = json.dumps(record).encode()  # ASCII: names of files need not be valid Unicode
    return content[:-1] + CRC % zlib.crc32(content) + b"\n"


def parse_record(line: bytes) -> Record:
    """The record in a line without its end; ValueError if it is none, or its checksum is not that of its content."""
    _require_whole(line + b"\n")
    return json.loads(line[: 1 - _END] + b"}")


def _require_whole(line: bytes) -> None:
    """ValueError for a line whose checksum is not that of its content."""
    if line[-_END:-1] != CRC % zlib.crc32(b"}", zlib.crc32(line[:-_END])):
        raise ValueError("its checksum is not that of its content")


def _id(line: bytes) -> str:
    plain = line[len(_ID) : line.find(b'"', len(_ID))]
    return plain.decode() if line.startswith(_ID) and b"\\" not in plain else json.loads(line)["id"]


class DamagedRecordsError(ValueError):
    """A file of records has a line that is damaged."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return self.reason


class RecordLog(MutableMapping[str, Record]):
    """Records by id, a later one in the place of an earlier. Those of lines are verified at once and parsed on demand."""

    def __init__(self) -> None:
        self._where: dict[str, int | Record] = {}
        self._files: list[BinaryIO] = []
        self.noted: dict[str, set[str]] = {name: set() for name in NOTED}

    def read(self, path: Path, *, repair: bool = False) -> None:
        """Take in the lines of a file, if it is there. A last line cut short was never committed: ignored, or cut off.

        Only who may write to the file may cut it. Raises ValueError that names the line for one that is damaged.
        """
        if not path.exists():
            return
        number = self._open(path)
        offset = 0
        file = self._files[number]
        file.seek(0)
        for count, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                if repair:
                    os.truncate(path, offset)
                break
            try:
                self._take(line, number, offset)
            except (ValueError, KeyError, TypeError) as error:
                reason = f"{path}:{count}: not a record ({error}); the file is damaged, see `excl repair`"
                raise DamagedRecordsError(path, reason) from error
            offset += len(line)

    def append(self, path: Path, lines: list[bytes]) -> None:
        """Take in lines of `encode` that are being appended to a file; they are on disk when this returns."""
        with path.open("ab") as file:
            offset = file.tell()
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        number = self._open(path)
        for line in lines:
            self._take(line, number, offset)
            offset += len(line)

    def line(self, key: str) -> bytes:
        """The line of a record as it stands in its file, or would."""
        where = self._where[key]
        return self._line(where) if isinstance(where, int) else encode(where)

    def __reduce__(self) -> tuple[type, tuple[dict[str, Record]]]:
        """Elsewhere it is a mapping of its own: files that are open here are of no use there."""
        return dict, (dict(self.items()),)

    def __getitem__(self, key: str) -> Record:
        where = self._where[key]
        return where if isinstance(where, dict) else json.loads(self._line(where)[:-_END] + b"}")

    def __setitem__(self, key: str, record: Record) -> None:
        self._where[key] = record
        self._note(key, NOTED & record.keys())

    def __delitem__(self, key: str) -> None:
        del self._where[key]
        self._note(key, _NONE)

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def _take(self, line: bytes, number: int, offset: int) -> None:
        _require_whole(line)
        names: Set[str] = _NONE
        if b'"error": ' in line or b'"damage": ' in line:  # which may stand in something inside
            names = NOTED & json.loads(line).keys()
        key = _id(line)
        if names or key in self._where:
            self._note(key, names)
        self._where[key] = number << 2 * _LENGTH_BITS | offset << _LENGTH_BITS | len(line)

    def _note(self, key: str, names: Set[str]) -> None:
        for name, ids in self.noted.items():
            if name in names:
                ids.add(key)
            else:
                ids.discard(key)

    def _open(self, path: Path) -> int:
        """The number of the file that has this name now."""
        status = path.stat()
        for number, file in enumerate(self._files):
            if os.path.samestat(os.fstat(file.fileno()), status):
                return number
        self._files.append(path.open("rb"))
        return len(self._files) - 1

    def _line(self, where: int) -> bytes:
        length = where & (1 << _LENGTH_BITS) - 1
        offset = where >> _LENGTH_BITS & (1 << _LENGTH_BITS) - 1
        return os.pread(self._files[where >> 2 * _LENGTH_BITS].fileno(), length, offset)
