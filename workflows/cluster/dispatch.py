"""Send shards to workers that may die: what they had finished is kept, and a video that kills them is found.

Nothing here knows what the workers are (`dask_cluster.py` does). A worker that dies leaves the journal of its shard, from
which the videos that it had finished are committed. The others are tried once more, then in halves, until a video that is
in hand alone whenever a worker dies is recorded as the one that does it.
"""

from __future__ import annotations

import itertools
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
from excl.pipeline.execution import pending_videos
from excl.pipeline.execution.interrupts import Interrupt
from excl.pipeline.execution.pending_videos import VideoTask
from excl.pipeline.execution.shard_work import Executor, ShardTask, ShardWork, take_until_stopped

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
        """Return how many tasks can be worked on now."""
        ...

    def submit(self, work: ShardWork, task: ShardTask) -> None:
        """Have `shard_work.run_shard` run somewhere."""
        ...

    def wait(self, timeout_s: float) -> list[tuple[ShardTask, list[Record] | Exception]]:
        """Return tasks that have ended, with the records that are new or the error; after the time-out there may be none."""
        ...


def dispatch_executor(open_pool: Callable[[], AbstractContextManager[WorkerPool]]) -> Executor:
    """Return an executor over the workers of a pool, which is opened when a stage has a first task."""

    def execute(
        work: ShardWork, tasks: Iterable[ShardTask], manifest: Manifest, stop: Interrupt
    ) -> Generator[Record, None, None]:
        waiting = take_until_stopped(stop, tasks)
        task = next(waiting, None)
        if task is not None:
            with open_pool() as pool:
                yield from _Dispatch(pool, work, manifest, stop).run(itertools.chain([task], waiting))

    return execute


class _Dispatch:
    def __init__(self, pool: WorkerPool, work: ShardWork, manifest: Manifest, stop: Interrupt) -> None:
        self.pool, self.work, self.manifest, self.stop = pool, work, manifest, stop
        self.retries: deque[ShardTask] = deque()
        self.failures: dict[str, int] = {}  # of the attempts at a task, by its token
        self.num_in_hand = 0
        self.tail: Tail | None = None
        self.followed: set[str] = set()  # ids of records that were seen in journals, and yielded, before their task ended
        self.followed_at = time.monotonic()

    def run(self, tasks: Iterator[ShardTask]) -> Iterator[Record]:
        """Keep all workers busy until there is nothing left; yields what workers commit, once, and soon."""
        warn_at = time.monotonic() + TELL_AFTER_S
        while self._submit(tasks) or self.num_in_hand:
            ended = self.pool.wait(POLL_S)
            for task, outcome in ended:
                self.num_in_hand -= 1
                yield from self._end(task, outcome)
            if time.monotonic() - self.followed_at > FOLLOW_EVERY_S:
                yield from self._follow()
            if ended or self.pool.capacity():
                warn_at = time.monotonic() + TELL_AFTER_S
            elif time.monotonic() > warn_at:
                warn_at = time.monotonic() + TELL_EVERY_S
                log.warning("%s: there are no workers; waiting for some", self.work.name)

    def _submit(self, tasks: Iterator[ShardTask]) -> bool:
        """Submit as many tasks as there are workers for, if no stop is asked for; returns whether more may be left."""
        if self.stop.requested:  # also without any worker, and where a task of a worker that died is left
            return False
        while True:
            task = self.retries.popleft() if self.retries else next(tasks, None)
            if task is None:  # also without any worker: then nobody waits for one
                return False
            if self.num_in_hand >= self.pool.capacity():
                self.retries.appendleft(task)
                return True
            self.tail = self.tail or Tail(self.work.out, task.run)
            self.pool.submit(self.work, task)
            self.num_in_hand += 1

    def _follow(self) -> Iterator[Record]:
        """Yield the videos of the tasks in hand that workers have finished, for those who watch."""
        self.followed_at = time.monotonic()
        for record in self.tail.new() if self.tail else ():
            if record["id"] not in self.followed and not is_shard(record):
                self.followed.add(record["id"])
                yield record

    def _end(self, task: ShardTask, outcome: list[Record] | Exception) -> Iterator[Record]:
        """Commit the records of a task that has ended, and retry what is missing of it."""
        failures = self.failures.pop(task.token, 0) + 1
        if isinstance(outcome, list):
            yield from self._commit(task, outcome)
            return
        survivors = self.work.surviving_records(attempts(self.work.out, task.journal)[1], task.shard)
        yield from self._commit(task, list(survivors.values()))
        todo = tuple(item for item in task.todo if video_key(item.video_id) not in survivors)
        if not isinstance(outcome, WorkerDiedError) and (not isinstance(outcome, OSError) or failures >= TRIES):
            raise outcome
        log.warning("shard %d: %s; %d of %d videos are left of it", task.shard, outcome, len(todo), len(task.todo))
        if len(task.todo) == 1 and todo and failures >= TRIES_ALONE:
            yield self._blame(todo[0])
        elif todo:
            self._retry(task, todo, failures)
        elif self.work.videos_to_join(self.manifest.records, task.shard, task.members) is not None:
            failures = 1 if task.todo else failures  # only those of attempts at nothing but writing the shard
            if failures >= TRIES_ALONE:
                raise OSError(
                    f"shard {task.shard}: {TRIES_ALONE} workers died that had to write it, of videos that are all done"
                )
            self._retry(task, (), failures)

    def _commit(self, task: ShardTask, records: list[Record]) -> Iterator[Record]:
        """Commit records that are new, remove the journals that had them, and yield those that were not yet followed."""
        committed = self.manifest.records
        new = [record for record in records if committed.get(record["id"]) != record]
        if new:
            self.manifest.add_all(new)
        for record in filter(is_shard, new):
            self.work.remove_parts(record, committed)
        for path in attempts(self.work.out, task.journal)[0]:
            path.unlink(missing_ok=True)
        yield from (record for record in new if record["id"] not in self.followed)
        self.followed.difference_update(record["id"] for record in records)

    def _retry(self, task: ShardTask, todo: tuple[VideoTask, ...], failures: int) -> None:
        """Put what is left of a task at the head of the queue: as it is, or in halves after some failures."""
        names = [shard_key(task.shard), *map(video_key, task.members)]
        known = tuple(self.manifest.records[name] for name in names if name in self.manifest.records)
        middle = len(todo) // 2
        pieces = [todo[:middle], todo[middle:]] if len(todo) > 1 and failures >= TRIES else [todo]
        for piece in reversed(pieces):
            retry = ShardTask(task.shard, task.members, piece, known, task.run)
            self.failures[retry.token] = failures if len(piece) in {0, len(task.todo)} else 0
            self.retries.appendleft(retry)

    def _blame(self, item: VideoTask) -> Record:
        """Record a video as one that kills its worker."""
        message = f"{item.path}: {TRIES_ALONE} workers died that had this video alone in hand"
        record = pending_videos.failure(item.video_id, VideoError("crashed", message), item.file)
        self.manifest.add(record)
        return record
