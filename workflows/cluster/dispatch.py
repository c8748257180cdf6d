"""Shards given out to workers that may die: what they had finished is kept, and a video that kills them is found.

Nothing here knows what the workers are (`dask_cluster.py` does). A worker that dies leaves the journal of its shard, from
which the videos that it had finished are committed. The others are tried once more, then in halves, until a video that is
in hand alone whenever a worker dies is recorded as the one that does it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from excl.datasets.video.errors import VideoError
from excl.pipeline.artifacts.journals import Tail, attempts
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.record_log import Record
from excl.pipeline.artifacts.video_records import is_shard, shard_key, video_key
from excl.pipeline.execution import work_items
from excl.pipeline.execution.executors import Executor, ShardTask, ShardWork, take_until_stopped
from excl.pipeline.execution.interrupts import Interrupt
from excl.pipeline.execution.work_items import VideoTask

log = logging.getLogger(__name__)

TRIES = 2  # of several videos at once before they are halved, and of anything where a file system fails
TRIES_ALONE = 3  # of one video: a worker may die of something else
POLL_S, FOLLOW_EVERY_S = 1.0, 2.0
TELL_AFTER_S, TELL_EVERY_S = 10.0, 60.0  # that there are no workers


class WorkerDiedError(RuntimeError):
    """The worker that had a task is gone."""


class WorkerPool(Protocol):
    """Workers, each of which does one task at a time."""

    def capacity(self) -> int:
        """How many tasks can be worked on now."""
        ...

    def submit(self, work: ShardWork, task: ShardTask) -> None:
        """Have `executors.do_shard` done somewhere."""
        ...

    def wait(self, timeout_s: float) -> list[tuple[ShardTask, list[Record] | Exception]]:
        """Tasks that have ended, with the records that are new or the error; maybe none after the time-out."""
        ...


def dispatched(pool: Callable[[], AbstractContextManager[WorkerPool]]) -> Executor:
    """An executor over the workers of a pool, which is made for each stage that is run."""

    def execute(
        work: ShardWork, tasks: Iterable[ShardTask], manifest: Manifest, stop: Interrupt
    ) -> Generator[Record, None, None]:
        with pool() as workers:
            yield from _Dispatch(workers, work, manifest, stop).run(take_until_stopped(stop, tasks))

    return execute


class _Dispatch:
    def __init__(self, pool: WorkerPool, work: ShardWork, manifest: Manifest, stop: Interrupt) -> None:
        self.pool, self.work, self.manifest, self.stop = pool, work, manifest, stop
        self.again: deque[ShardTask] = deque()
        self.failures: dict[str, int] = {}  # of the attempts at a task, by its token
        self.in_hand = 0
        self.tail: Tail | None = None
        self.told: set[str] = set()  # ids of what was seen in journals, and yielded, before its task ended
        self.followed_at = time.monotonic()

    def run(self, tasks: Iterator[ShardTask]) -> Iterator[Record]:
        """Keep all workers busy until there is nothing left; yields what workers commit, once, and soon."""
        tell_at = time.monotonic() + TELL_AFTER_S
        while self._give_out(tasks) or self.in_hand:
            ended = self.pool.wait(POLL_S)
            for task, outcome in ended:
                self.in_hand -= 1
                yield from self._end(task, outcome)
            if time.monotonic() - self.followed_at > FOLLOW_EVERY_S:
                yield from self._follow()
            if ended or self.pool.capacity():
                tell_at = time.monotonic() + TELL_AFTER_S
            elif time.monotonic() > tell_at:
                tell_at = time.monotonic() + TELL_EVERY_S
                log.warning("%s: there are no workers; waiting for some", self.work.name)

    def _give_out(self, tasks: Iterator[ShardTask]) -> bool:
        """Give out as many tasks as there are workers for, if no stop is asked for; returns whether more may be left."""
        if self.stop.requested:  # also where there are no workers, or what a worker that died had in hand is left
            return False
        while True:
            if not self.again:
                task = next(tasks, None)
                if task is None:  # also where there are no workers: nobody waits for them then
                    return False
                self.again.append(task)
            if self.in_hand >= self.pool.capacity():
                return True
            task = self.again.popleft()
            self.tail = self.tail or Tail(self.work.out, task.run)
            self.pool.submit(self.work, task)
            self.in_hand += 1

    def _follow(self) -> Iterator[Record]:
        """The videos that workers have finished of the tasks in hand, for those who watch."""
        self.followed_at = time.monotonic()
        for record in self.tail.new() if self.tail else ():
            if record["id"] not in self.told and not is_shard(record):
                self.told.add(record["id"])
                yield record

    def _end(self, task: ShardTask, outcome: list[Record] | Exception) -> Iterator[Record]:
        """Commit what came of a task, and see to what did not."""
        failures = self.failures.pop(task.token, 0)
        if isinstance(outcome, list):
            yield from self._commit(task, outcome)
            return
        kept = self.work.surviving_records(attempts(self.work.out, task.journal)[1], task.shard)
        yield from self._commit(task, list(kept.values()))
        left = tuple(item for item in task.todo if video_key(item.video_id) not in kept)
        if not isinstance(outcome, WorkerDiedError | OSError):
            raise outcome
        if not isinstance(outcome, WorkerDiedError) and failures + 1 >= TRIES:
            raise outcome
        log.warning("shard %d: %s; %d of %d videos are left of it", task.shard, outcome, len(left), len(task.todo))
        if len(task.todo) == 1 and left and failures + 1 >= TRIES_ALONE:
            yield self._blame(left[0])
        elif left:
            self._do_again(task, left, failures + 1)
        elif self.work.videos_to_join(self.manifest.records, task.shard, task.members) is not None:
            self._write_again(task, failures if not task.todo else 0)

    def _write_again(self, task: ShardTask, failures: int) -> None:
        """Have a shard written whose videos are all done; OSError if that has killed enough workers."""
        if failures + 1 >= TRIES_ALONE:
            raise OSError(
                f"shard {task.shard}: {TRIES_ALONE} workers died that had to write it, of videos that are all done"
            )
        self._do_again(task, (), failures + 1)

    def _commit(self, task: ShardTask, records: list[Record]) -> Iterator[Record]:
        """Commit records unless they are, and remove the journals that had them."""
        known = self.manifest.records
        new = [record for record in records if record["id"] not in known or known[record["id"]] != record]
        if new:
            self.manifest.add_all(new)
        for record in filter(is_shard, new):
            self.work.remove_parts(record, known)
        for path in attempts(self.work.out, task.journal)[0]:
            path.unlink(missing_ok=True)
        yield from (record for record in new if record["id"] not in self.told)
        self.told.difference_update(record["id"] for record in records)

    def _do_again(self, task: ShardTask, left: tuple[VideoTask, ...], failures: int) -> None:
        """Put what is left of a task at the head of the queue: as it is, or in halves after some failures."""
        names = [shard_key(task.shard), *map(video_key, task.members)]
        known = tuple(self.manifest.records[name] for name in names if name in self.manifest.records)
        middle = len(left) // 2
        pieces = [left[:middle], left[middle:]] if len(left) > 1 and failures >= TRIES else [left]
        for piece in reversed(pieces):
            again = ShardTask(task.shard, task.members, piece, known, task.run)
            self.failures[again.token] = failures if len(piece) in {0, len(task.todo)} else 0
            self.again.appendleft(again)

    def _blame(self, item: VideoTask) -> Record:
        """Record a video as one that kills its worker."""
        message = f"{item.path}: {TRIES_ALONE} workers died that had this video alone in hand"
        record = work_items.failure(item.video_id, VideoError("crashed", message), item.file)
        self.manifest.add(record)
        return record
