"""The records of a stage folder: lines of JSON with a checksum each, found by id and parsed on demand.

A folder of a million videos has a gigabyte of them. Memory holds where each line stands, and which records say that
something went wrong: about 200 bytes a record.
"""

from __future__ import annotations

import json
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping, MutableMapping, Set
from pathlib import Path
from typing import Any, BinaryIO

Record = Mapping[str, Any]

CRC = b', "crc32": "%08x"}'
_END = len(CRC % 0) + 1
_ID = b'{"id": "'
_NONE: Set[str] = frozenset()
NOTED = frozenset({"error", "damage"})  # keys by which records are found without being parsed


def encode(record: Mapping[str, Any]) -> bytes:
    """Return the line of a record, which ends with a crc32 of the rest."""
    content = json.dumps(record).encode()  # ASCII: names of files need not be valid Unicode
    return content[:-1] + CRC % zlib.crc32(content) + b"\n"


def parse_record(line: bytes) -> Record:
    """Return the record in a line without its end; ValueError if there is no record in it, or its checksum is wrong."""
    _require_whole(line + b"\n")
    return json.loads(line[: 1 - _END] + b"}")


def _require_whole(line: bytes) -> None:
    """Raise ValueError for a line whose checksum is not that of its content."""
    if line[-_END:-1] != CRC % zlib.crc32(b"}", zlib.crc32(line[:-_END])):
        raise ValueError("its checksum is not that of its content")


def _id(line: bytes) -> str:
    plain = line[len(_ID) : line.find(b'"', len(_ID))]
    return plain.decode() if line.startswith(_ID) and b"\\" not in plain else json.loads(line)["id"]


class DamagedRecordsError(ValueError):
    """The error for a file of records that has a damaged line."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return self.reason


class RecordLog(MutableMapping[str, Record]):
    """Records by id, of which later ones replace earlier. Lines are verified when they are read, and parsed on demand."""

    def __init__(self, records: Mapping[str, Record] | None = None) -> None:
        self._lines: dict[str, int | Record] = {}  # the number of its line among those read, or a record without a line
        self._file_numbers, self._offsets, self._lengths = array("H"), array("Q"), array("Q")  # of all lines read
        self._files: list[BinaryIO] = []
        self.noted: dict[str, set[str]] = {name: set() for name in NOTED}
        self.update(records or {})

    def read(self, path: Path, *, repair: bool = False) -> None:
        """Take in the lines of a file, if it exists. A last line cut short was never committed: it is ignored, or cut off.

        Only a process that may write to the file may cut it. ValueError names a line that is damaged.
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
        """Append lines of `encode` to a file and take them in; they are on disk when this returns."""
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
        """Return the line of a record as it stands in its file, or would stand."""
        line = self._lines[key]
        return self._read_line(line) if isinstance(line, int) else encode(line)

    def __reduce__(self) -> tuple[type[RecordLog], tuple[dict[str, Record]]]:
        """Send the records to another process without the files that are open here."""
        return RecordLog, (dict(self.items()),)

    def __getitem__(self, key: str) -> Record:
        line = self._lines[key]
        return json.loads(self._read_line(line)[:-_END] + b"}") if isinstance(line, int) else line

    def __setitem__(self, key: str, record: Record) -> None:
        self._lines[key] = record
        self._note(key, NOTED & record.keys())

    def __delitem__(self, key: str) -> None:
        del self._lines[key]
        self._note(key, _NONE)

    def __contains__(self, key: object) -> bool:
        return key in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def _take(self, line: bytes, number: int, offset: int) -> None:
        _require_whole(line)
        names: Set[str] = _NONE
        if b'"error": ' in line or b'"damage": ' in line:  # which may stand in something inside
            names = NOTED & json.loads(line).keys()
        key = _id(line)
        if names or key in self._lines:
            self._note(key, names)
        self._lines[key] = len(self._offsets)
        self._file_numbers.append(number)
        self._offsets.append(offset)
        self._lengths.append(len(line))

    def _note(self, key: str, names: Set[str]) -> None:
        for name, ids in self.noted.items():
            if name in names:
                ids.add(key)
            else:
                ids.discard(key)

    def _open(self, path: Path) -> int:
        """Return the number of the file that has this name now; open it if it is not open."""
        status = path.stat()
        for number, file in enumerate(self._files):
            if os.path.samestat(os.fstat(file.fileno()), status):
                return number
        self._files.append(path.open("rb"))
        return len(self._files) - 1

    def _read_line(self, line: int) -> bytes:
        return os.pread(self._files[self._file_numbers[line]].fileno(), self._lengths[line], self._offsets[line])
