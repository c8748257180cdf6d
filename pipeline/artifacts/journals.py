"""Several processes at one stage folder: each commits to a journal of its own, and the journals are folded into the records.

    records.jsonl                     written by who holds `.lock`, one process at a time
    journals/share-0-of-2.jsonl       one share of a job array (`--shard-range 0/2`), which holds `.lock-0-of-2`
    journals/RUN/shard-00012-….jsonl  one shard that a worker of a cluster has in hand, sent by the run RUN

Whoever opens the folder alone appends what journals have to the records and removes them, and until then readers see both.
A worker that is still at it when its run is over finds no folder for another journal. A job array's processes hold `.lock`
while they begin, plan and end.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import filelock

from excl.pipeline.artifacts.record_log import Record, RecordLog, encode, parse_record

LOCK = ".lock"
FOLDER = "journals"
SYNC_EVERY_S = 1.0
WAIT_S, WAIT_FOR_OWN_S = 600.0, 5.0  # for other shares, which hold the folder while they read its records; and for a look
_SHARE = re.compile(r"(\d+)/(\d+)")


class BusyError(RuntimeError):
    """Another process is working on the folder."""


@dataclass(frozen=True)
class ShardRange:
    """One of `of` equal shares of a stage's shards: those whose number leaves this remainder, so that it stays the same
    when videos are added."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> ShardRange:
        """The share that `i/n` names; ValueError if it names none."""
        found = _SHARE.fullmatch(text)
        if found is None or int(found[1]) >= int(found[2]):
            raise ValueError(f"{text!r}; wanted i/n with i from 0 to n - 1, such as 0/4")
        return cls(int(found[1]), int(found[2]))

    def has(self, shard: int) -> bool:
        """Whether a shard is of this share."""
        return shard % self.of == self.number

    @property
    def name(self) -> str:
        """Of its journal and its lock."""
        return f"{self.number}-of-{self.of}"


class Journal:
    """What a worker commits of one shard: `records` are those that are known of it, `add` puts one on disk first.

    A line is with the system at once, so that a kill loses none, and on the disk within a second and at the end.
    """

    def __init__(self, folder: Path, name: str, known: Iterable[Record]) -> None:
        """Take also what earlier attempts at the task of this name had committed when they died."""
        self.found = attempts(folder, name)[1]
        self.records: MutableMapping[str, Record] = {**{record["id"]: record for record in known}, **self.found}
        self.path = folder / FOLDER / f"{name}-{uuid.uuid4().hex[:12]}.jsonl"
        self._file = self.path.open("ab")
        self._synced_at = time.monotonic()

    def add(self, record: Record) -> None:
        """Commit one record."""
        self._file.write(encode(record))
        self._file.flush()
        if time.monotonic() - self._synced_at > SYNC_EVERY_S:
            self._sync()
        self.records[record["id"]] = record

    def close(self) -> None:
        """Put all of it on the disk."""
        self._sync()
        self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()


def attempts(folder: Path, name: str) -> tuple[list[Path], dict[str, Record]]:
    """The journals of all attempts at a task, and the records in them."""
    paths = sorted((folder / FOLDER).glob(f"{name}-*.jsonl"))
    found: dict[str, Record] = {}
    for path in paths:
        found |= _readable(path)
    return paths, found


class Tail:
    """What workers commit to the journals of a run, as it comes: `new` gives each record once, soon after it was written.

    It is for those who watch. What counts is read when a task has ended.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._run = folder / FOLDER / run
        self._read_to: dict[Path, int] = {}  # of the journals that were there the last time

    def new(self) -> Iterator[Record]:
        """The records that were not there the last time; a line that does not end yet is left for the next."""
        before, self._read_to = self._read_to, {}
        for path in sorted(self._run.glob("*.jsonl")):
            lines, offset = [], before.get(path, 0)
            with contextlib.suppress(OSError), path.open("rb") as file:  # it was committed and removed meanwhile
                file.seek(offset)
                lines = file.read().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            self._read_to[path] = offset + sum(map(len, whole))
            for line in whole:
                with contextlib.suppress(ValueError):  # whoever reads it for good says what is wrong with it
                    yield parse_record(line[:-1])


def _readable(path: Path) -> RecordLog:
    """The records of a journal that may be written to, or be removed, at this moment."""
    records = RecordLog()
    with contextlib.suppress(FileNotFoundError):
        records.read(path)
    return records


def journals(folder: Path) -> list[Path]:
    """The journals in a stage folder."""
    return sorted(path for pattern in ("*.jsonl", "*/*.jsonl") for path in (folder / FOLDER).glob(pattern))


def merge_journal(records: MutableMapping[str, Record], path: Path) -> list[bytes]:
    """See what a journal has committed; the lines that are new. FileNotFoundError if it was folded into the records.

    The journal of a share counts for more than the records, since nobody else may do what is its. In that of a worker, which
    may be one that was given up, a failure does not take the place of what was done.
    """
    found = RecordLog()
    if not path.exists():
        raise FileNotFoundError(path)
    found.read(path)
    new = []
    for key in found:
        record = found[key]
        known = records.get(key)
        if known == record or (is_of_worker(path) and "error" in record and known is not None and "error" not in known):
            continue
        records[key] = record
        new.append(found.line(key))
    return new


def is_of_worker(path: Path) -> bool:
    """Whether a journal is one of a worker's, and not a share's."""
    return not path.name.startswith("share-")


def remove(paths: Iterable[Path]) -> None:
    """Remove journals, and the folders of runs; a worker that was given up cannot begin another one there."""
    for path in paths:
        path.unlink(missing_ok=True)
        if is_of_worker(path):
            with contextlib.suppress(OSError):  # others are still in it
                path.parent.rmdir()


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, *, wait_s: float = 0.0) -> Iterator[filelock.BaseFileLock]:
    """Hold a lock of a folder, which dies with its process. BusyError if another process holds it for longer."""
    lock = filelock.FileLock(folder / name)
    try:
        lock.acquire(timeout=wait_s)
    except filelock.Timeout as error:
        raise BusyError(f"{folder}: another process is working on it; wait for it, or choose another folder") from error
    try:
        yield lock
    finally:
        lock.release()


def share_lock(share: ShardRange) -> str:
    """The name of a share's lock."""
    return f"{LOCK}-{share.name}"


def is_being_worked_on(folder: Path, *, but: ShardRange | None = None) -> list[str]:
    """The names of the shares at which a process works at this moment, the one given left out."""
    found = []
    for path in sorted(folder.glob(f"{LOCK}-*-of-*")):
        if but is not None and path.name == share_lock(but):
            continue
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            found.append(path.name.removeprefix(f"{LOCK}-"))
        else:
            lock.release()
    return found
