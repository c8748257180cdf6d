"""Where the shards of a stage are made: in this process, or wherever an executor of `workflows/cluster` sends them.

It is the same work either way: the videos of a shard, each committed when it is done, then the shard. In this process the
records of the stage are what it is committed to; a worker elsewhere commits to a journal, and whoever sent it the shard
commits what comes back, which is small.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from excl.pipeline.artifacts.atomic_files import move, sha256_file
from excl.pipeline.artifacts.journals import Journal
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.record_log import Record
from excl.pipeline.execution import work_items
from excl.pipeline.execution.work_items import Map, VideoTask

if TYPE_CHECKING:
    from excl.pipeline.execution.interrupts import Interrupt

Join = Callable[[Path, list[tuple[str, Path]]], dict[str, Any]]


class RecordSink(Protocol):
    """What finished work is committed to."""

    @property
    def records(self) -> MutableMapping[str, Record]:
        """By id."""
        ...

    def add(self, record: Record, /) -> None:
        """Commit one."""
        ...


@dataclass(frozen=True)
class ShardTask:
    """The unit of work: one shard, of whose `members` (all its planned videos, in order) `todo` are to be done.

    `known` are the records that there are of the shard and its members. Attempts at the same task, which may have died,
    share its `token`; `run` is the folder of all journals of a run.
    """

    shard: int
    members: tuple[str, ...]
    todo: tuple[VideoTask, ...]
    known: tuple[Record, ...]
    run: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def journal(self) -> str:
        """What the names of its journals begin with."""
        return f"{self.run}/shard-{self.shard:05d}-{self.token}"


@dataclass(frozen=True)
class ShardWork:
    """How a stage makes shards, as workers are told: `work` makes a video's part and its record, `join` a shard of parts.

    `at_once` says how many videos to work on at a time in the process that asks.
    """

    name: str
    out: Path
    work: Callable[[VideoTask], Record]
    join: Join
    at_once: Callable[[], int]

    def do(self, ledger: RecordSink, tasks: Iterable[ShardTask], map: Map) -> Iterator[Record]:
        """Do the videos of tasks in turn, and join a shard when the last of its videos is recorded; yields what is new.

        Raises SystemicError where one video after the other fails in a way that is not the video's.
        """
        task_of: dict[str, ShardTask] = {}

        def todo() -> Iterator[VideoTask]:
            for task in tasks:
                task_of.update(dict.fromkeys((item.video_id for item in task.todo), task))
                yield from task.todo

        for record in work_items.unless_systemic(map(self.work, todo())):
            ledger.add(record)
            yield record
            task = task_of.pop(record["id"].removeprefix("video/"))
            if joined := self.join_parts(ledger, task.shard, task.members):
                yield joined

    def join_parts(self, ledger: RecordSink, shard: int, members: Sequence[str]) -> Record | None:
        """Write a shard if all its members are recorded and it lacks one. Returns its record, where that is new.

        Parts stay: who commits the record to the stage's own removes them, for a worker that was given up may still join.
        """
        done = self.videos_to_join(ledger.records, shard, members)
        if done is None:
            return None
        committed = ledger.records.get(shard_key(shard), {})
        # Where nothing is done, all that it held is lost for good.
        new = self._join(shard, done, committed) if done else {"id": shard_key(shard), "videos": []}
        ledger.add(new)
        return new

    def videos_to_join(self, records: Mapping[str, Record], shard: int, members: Sequence[str]) -> dict[str, Record] | None:
        """Of what videos, with their records, a shard is to be written; None if not all are recorded, or it is there."""
        found = [records.get(work_items.key(v)) for v in members]
        if None in found:
            return None
        done = {v: record for v, record in zip(members, found, strict=True) if record and "error" not in record}
        committed = records.get(shard_key(shard), {})
        is_current = committed.get("videos", []) == list(done) and (not done or shard_exists(self.out, committed))
        return None if is_current else done

    def surviving_records(self, found: Mapping[str, Record], shard: int) -> dict[str, Record]:
        """What stands of what attempts at a shard committed: all if they joined it, and else what has not lost its part."""
        if shard_key(shard) in found:  # whose parts are in it
            return dict(found)
        return {key: record for key, record in found.items() if "error" in record or shard_exists(self.out, record)}

    def remove_parts(self, joined: Record, records: Mapping[str, Record]) -> None:
        """Remove the parts of a shard that was joined and committed."""
        for video_id in joined["videos"]:
            (self.out / records[work_items.key(video_id)]["part"]).unlink(missing_ok=True)

    def _join(self, shard: int, done: dict[str, Record], committed: Record) -> Record:
        """Join the parts of videos, and what the committed version of the shard holds of them, into a new shard."""
        sources = []
        for video_id, record in done.items():
            part = self.out / record["part"]
            if part.exists():
                _require_as_recorded(part, record)
            sources.append((video_id, part if part.exists() or "file" not in committed else self.out / committed["file"]))
        joined = self.out / "parts" / f".joined-{shard:05d}-{uuid.uuid4().hex[:8]}.tmp"
        facts = self.join(joined, sources)
        sha256 = sha256_file(joined)
        name = f"shards/{shard:05d}-{sha256[:12]}.h5"
        move(joined, self.out / name)
        return {"id": shard_key(shard), "file": name, "videos": list(done), **facts, "sha256": sha256}


def _require_as_recorded(part: Path, record: Record) -> None:
    """OSError, and the part is gone, if it is not the one recorded: a worker of another run may have replaced it."""
    if "part_sha256" in record and sha256_file(part) != record["part_sha256"]:
        part.unlink()
        raise OSError(f"{part}: not what was recorded, and removed; the same command makes it again")


def shard_key(shard: int) -> str:
    """The record id of a shard."""
    return f"shard/{shard:05d}"


def is_shard(record: Record) -> bool:
    """Whether a record is that of a shard."""
    return record["id"].startswith("shard/")


def shard_exists(out: Path, record: Record) -> bool:
    """Whether a record names a shard or a part, and the file is there."""
    name = record.get("file", record.get("part"))
    return name is not None and (out / name).is_file()


class Executor(Protocol):
    """Does tasks, commits what comes of them to the manifest, and yields each new record; stops early if that is asked.

    What it holds meanwhile, such as workers, it lets go when the generator ends or is closed.
    """

    def __call__(
        self, work: ShardWork, tasks: Iterable[ShardTask], manifest: Manifest, stop: Interrupt, /
    ) -> Generator[Record, None, None]: ...


def inline(map: Map | None = None) -> Executor:
    """All in this process, by default in as many threads as the stage wants videos at once."""

    def execute(
        work: ShardWork, tasks: Iterable[ShardTask], manifest: Manifest, stop: Interrupt
    ) -> Generator[Record, None, None]:
        for record in work.do(manifest, take_until_stopped(stop, tasks), map or work_items.in_threads(work.at_once())):
            if is_shard(record):
                work.remove_parts(record, manifest.records)
            yield record

    return execute


def take_until_stopped(stop: Interrupt, tasks: Iterable[ShardTask]) -> Iterator[ShardTask]:
    """The tasks up to the one that is in hand when a stop is asked for."""
    for task in tasks:
        if stop.asked:
            return
        yield task


def run_shard(work: ShardWork, task: ShardTask) -> list[Record]:
    """One task in a worker's process; returns what is new, also from attempts at it that died."""
    journal = Journal(work.out, task.journal, task.known)
    found = work.surviving_records(journal.found, task.shard)
    todo = tuple(item for item in task.todo if work_items.key(item.video_id) not in found)
    for item in todo:  # until it is done it counts as not done
        journal.records.pop(work_items.key(item.video_id), None)
    try:
        new = list(work.do(journal, [dataclasses.replace(task, todo=todo)], work_items.in_threads(work.at_once())))
        if joined := work.join_parts(journal, task.shard, task.members):
            new.append(joined)
    finally:
        journal.close()
    return [*found.values(), *new]
