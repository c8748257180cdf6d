"""Several processes at one stage folder: each commits to a journal of its own, and the journals are merged into the records.

    records.jsonl                     written by the process that holds `.lock`
    journals/share-0-of-2.jsonl       one share of a job array (`--shard-range 0/2`)
    journals/RUN/shard-00012-….jsonl  one shard that a worker of a cluster works on, sent by the run RUN

The next process that opens the folder alone appends what the journals hold to the records and removes them; until then
readers read both. A worker that still works when its run is over finds no folder for another journal.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, MutableMapping
from pathlib import Path

from excl.pipeline.artifacts.record_log import Record, RecordLog, encode, parse_record

FOLDER = "journals"
SYNC_EVERY_S = 1.0


class Journal:
    """The journal of a worker's attempt at one shard: `records` are the known ones of the shard, `add` commits one.

    A line reaches the system at once, so that a kill loses none, and the disk within a second and at the end.
    """

    def __init__(self, folder: Path, name: str, records: Iterable[Record]) -> None:
        """Open a journal; it also takes the records of earlier attempts at the task of this name, which died."""
        self.earlier = attempts(folder, name)[1]
        self.records: MutableMapping[str, Record] = {**{record["id"]: record for record in records}, **self.earlier}
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
        """Write all of it to the disk, and close it."""
        self._sync()
        self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()


def attempts(folder: Path, name: str) -> tuple[list[Path], dict[str, Record]]:
    """Return the journals of all attempts at a task, which others may write to or remove, and the records in them."""
    paths = sorted((folder / FOLDER).glob(f"{name}-*.jsonl"))
    records: dict[str, Record] = {}
    for path in paths:
        journal = RecordLog()
        with contextlib.suppress(FileNotFoundError):
            journal.read(path)
        records |= journal
    return paths, records


class Tail:
    """The records that workers commit to the journals of a run, as they come, for those who watch.

    The records that count are read when a task has ended.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._run = folder / FOLDER / run
        self._read_to: dict[Path, int] = {}  # in the journals that existed the last time

    def new(self) -> Iterator[Record]:
        """Yield each record once, soon after it was written; a line that does not end yet is left for the next call."""
        read_to, self._read_to = self._read_to, {}
        for path in sorted(self._run.glob("*.jsonl")):
            content, offset = b"", read_to.get(path, 0)
            with contextlib.suppress(OSError), path.open("rb") as file:  # it was committed and removed meanwhile
                file.seek(offset)
                content = file.read()
            lines = content.split(b"\n")[:-1]
            self._read_to[path] = offset + sum(len(line) + 1 for line in lines)
            for line in lines:
                with contextlib.suppress(ValueError):  # the reader for good says what is wrong with it
                    yield parse_record(line)


def journals(folder: Path) -> list[Path]:
    """Return the journals in a stage folder, while other processes may be removing folders of journals."""
    paths: list[Path] = []
    for place in (folder / FOLDER, *_entries(folder / FOLDER)):
        paths += (path for path in _entries(place) if path.suffix == ".jsonl")
    return sorted(paths)


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing of a file, or of a folder that is gone."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return list(folder.iterdir())
    return []


def merge_journal(records: MutableMapping[str, Record], path: Path) -> list[bytes]:
    """Take what a journal has committed into the records; return the new lines. FileNotFoundError if it was removed.

    A share's journal overrides the records: nobody else works on its shards. A worker's may come from an attempt that was
    given up, so its failures never override a success.
    """
    journal = RecordLog()
    if not path.exists():
        raise FileNotFoundError(path)
    journal.read(path)
    lines = []
    for key, record in journal.items():
        earlier = records.get(key)
        is_success = earlier is not None and "error" not in earlier
        if earlier == record or (is_success and "error" in record and _is_of_worker(path)):
            continue
        records[key] = record
        lines.append(journal.line(key))
    return lines


def _is_of_worker(path: Path) -> bool:
    return not path.name.startswith("share-")


def remove(paths: Iterable[Path]) -> None:
    """Remove journals and the folders of runs; an abandoned worker cannot begin another one there."""
    for path in paths:
        path.unlink(missing_ok=True)
        if _is_of_worker(path):
            with contextlib.suppress(OSError):  # the folder of a run with journals of others
                path.parent.rmdir()
