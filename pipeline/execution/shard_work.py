"""The work on a stage's shards: the videos of a shard, each committed when it is done, then the shard.

It is the same in this process and in the workers that an executor of `workflows/cluster` sends shards to. This process
commits to the records of the stage; a worker elsewhere commits to a journal, and the process that sent it the shard commits
the records that come back, which are small.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from excl.pipeline.artifacts.atomic_files import move, sha256_file
from excl.pipeline.artifacts.journals import Journal
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.record_log import Record
from excl.pipeline.artifacts.video_records import ShardRecord, VideoRecord, is_shard, shard_key, video_id_of, video_key
from excl.pipeline.execution import pending_videos
from excl.pipeline.execution.interrupts import Interrupt
from excl.pipeline.execution.pending_videos import VideoTask
from excl.pipeline.execution.thread_map import Map, threaded_map

Join = Callable[[Path, list[tuple[str, Path]]], Mapping[str, Any]]


class RecordSink(Protocol):
    """The place that finished work is committed to."""

    @property
    def records(self) -> MutableMapping[str, Record]:
        """Return all records, by id."""
        ...

    def add(self, record: Record, /) -> None:
        """Commit one record."""
        ...


@dataclass(frozen=True)
class ShardTask:
    """The unit of work: one shard, of whose `members` (all its planned videos, in order) `todo` are to be done.

    `records` are the existing ones of the shard and its members. Attempts at the same task, which may have died, share its
    `token`; `run` is the folder of all journals of a run.
    """

    shard: int
    members: tuple[str, ...]
    todo: tuple[VideoTask, ...]
    records: tuple[Record, ...]
    run: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def journal(self) -> str:
        """Return the beginning of the names of its journals."""
        return f"{self.run}/shard-{self.shard:05d}-{self.token}"


@dataclass(frozen=True)
class ShardWork:
    """The functions that make shards: `work` makes a video's part and its record, `join` a shard of parts.

    `join(target, [(video_id, file), …])` writes a shard of these videos from these files, in that order, and returns the
    facts for its record. `at_once` returns how many videos to process at a time in the calling process. All of it is sent to
    workers elsewhere, so it has to be picklable.
    """

    name: str
    out: Path
    work: Callable[[VideoTask], VideoRecord]
    join: Join
    at_once: Callable[[], int]

    def do(self, sink: RecordSink, tasks: Iterable[ShardTask], map: Map) -> Iterator[Record]:
        """Do the videos of tasks in turn, and join a shard when the last of its videos is recorded; yield new records.

        Raises SystemicError if one video after another fails through no fault of its own.
        """
        task_of: dict[str, ShardTask] = {}

        def todo() -> Iterator[VideoTask]:
            for task in tasks:
                task_of.update(dict.fromkeys((item.video_id for item in task.todo), task))
                yield from task.todo

        for record in pending_videos.unless_systemic(map(self.work, todo())):
            sink.add(record)
            yield record
            task = task_of.pop(video_id_of(record["id"]))
            if joined := self.join_parts(sink, task.shard, task.members):
                yield joined

    def join_parts(self, sink: RecordSink, shard: int, members: Sequence[str]) -> ShardRecord | None:
        """Write a shard if all its members are recorded and it lacks one. Return its record if it is new.

        Parts stay: the process that commits the record to the stage's own removes them, since a worker that was given up may
        still join.
        """
        sources = self.videos_to_join(sink.records, shard, members)
        if sources is None:
            return None
        record = self._join(shard, sources, sink.records.get(shard_key(shard), {}))
        sink.add(record)
        return record

    def videos_to_join(
        self, records: Mapping[str, Record], shard: int, members: Sequence[str]
    ) -> dict[str, VideoRecord] | None:
        """Return the videos, with their records, that a shard must be written from.

        None if a video has no record yet, or if the shard is up to date.
        """
        done: dict[str, VideoRecord] = {}
        for video_id in members:
            record = records.get(video_key(video_id))
            if record is None:
                return None
            if "error" not in record:
                done[video_id] = cast(VideoRecord, record)
        return None if self.is_up_to_date(records.get(shard_key(shard), {}), list(done)) else done

    def is_up_to_date(self, committed: Record, done: Sequence[str]) -> bool:
        """Return whether the committed version of a shard, if any, holds just the videos that are done."""
        return committed.get("videos", []) == done and (not done or shard_exists(self.out, committed))

    def surviving_records(self, records: Mapping[str, Record], shard: int) -> dict[str, Record]:
        """Return the records of earlier attempts at a shard that still count.

        These are all of them if the shard was joined, and otherwise those of failures and of videos whose part still exists.
        """
        if shard_key(shard) in records:  # whose parts are in it
            return dict(records)
        return {key: record for key, record in records.items() if "error" in record or shard_exists(self.out, record)}

    def remove_parts(self, joined: ShardRecord, records: Mapping[str, Record]) -> None:
        """Remove the parts of a shard that was joined and committed."""
        for video_id in joined["videos"]:
            (self.out / records[video_key(video_id)]["part"]).unlink(missing_ok=True)

    def _join(self, shard: int, done: dict[str, VideoRecord], committed: Record) -> ShardRecord:
        """Join the parts of videos, and what the committed version of the shard holds of them, into a new shard."""
        if not done:  # all that it held is lost for good
            return ShardRecord(id=shard_key(shard), videos=[])
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
        values: dict[str, Any] = {"id": shard_key(shard), "file": name, "videos": list(done), **facts, "sha256": sha256}
        return cast(ShardRecord, values)


def _require_as_recorded(part: Path, record: VideoRecord) -> None:
    """Raise OSError and remove the part if it is not the one recorded: a worker of another run may have replaced it."""
    if "part_sha256" in record and sha256_file(part) != record["part_sha256"]:
        part.unlink()
        raise OSError(f"{part}: not what was recorded, and removed; the same command makes it again")


def shard_exists(out: Path, record: Record) -> bool:
    """Return whether a record names a shard or a part, and the file exists."""
    name = record.get("file", record.get("part"))
    return name is not None and (out / name).is_file()


class Executor(Protocol):
    """A function that does tasks, commits their records and yields each new one; it stops early if an interrupt is
    requested.

    When the generator ends or is closed, it releases what it holds, such as workers.
    """

    def __call__(
        self, work: ShardWork, tasks: Iterable[ShardTask], manifest: Manifest, interrupt: Interrupt, /
    ) -> Generator[Record, None, None]: ...


def inline(map: Map | None = None) -> Executor:
    """Return an executor in this process, by default with as many threads as the stage wants videos at once."""

    def execute(
        work: ShardWork, tasks: Iterable[ShardTask], manifest: Manifest, interrupt: Interrupt
    ) -> Generator[Record, None, None]:
        for record in work.do(manifest, take_until_stopped(interrupt, tasks), map or threaded_map(work.at_once())):
            if is_shard(record):
                work.remove_parts(record, manifest.records)
            yield record

    return execute


def take_until_stopped(interrupt: Interrupt, tasks: Iterable[ShardTask]) -> Iterator[ShardTask]:
    """Yield the tasks up to the one in progress when a stop is requested."""
    for task in tasks:
        if interrupt.requested:
            return
        yield task


def run_shard(work: ShardWork, task: ShardTask) -> list[Record]:
    """Do one task in a worker's process; return the new records, also those of earlier attempts at it that died."""
    journal = Journal(work.out, task.journal, task.records)
    surviving = work.surviving_records(journal.earlier, task.shard)
    todo = tuple(item for item in task.todo if video_key(item.video_id) not in surviving)
    for item in todo:  # until it is done it counts as not done
        journal.records.pop(video_key(item.video_id), None)
    try:
        new_records = list(work.do(journal, [dataclasses.replace(task, todo=todo)], threaded_map(work.at_once())))
        if joined := work.join_parts(journal, task.shard, task.members):
            new_records.append(joined)
    finally:
        journal.close()
    return [*surviving.values(), *new_records]
