"""Workers of Dask as `dispatch.py` wants them, and what these do with a shard.

With `dask_cluster.py`, which finds or starts the workers, the only file that imports dask.distributed. Nothing is kept in
the scheduler that the folder does not have: what comes back of a shard are its records, and a run that is started again
goes by the folder alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from dask.distributed import Client, Future, KilledWorker, wait
from dask.distributed import get_worker as this_worker
from distributed.client import FuturesCancelledError
from distributed.diagnostics.plugin import ForwardLoggingPlugin

from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.journals import attempts
from excl.pipeline.artifacts.lazy_module import LazyModule
from excl.pipeline.artifacts.record_log import Record
from excl.pipeline.artifacts.video_records import VideoRecord
from excl.pipeline.execution.executors import ShardTask, ShardWork, run_shard
from excl.pipeline.execution.video_reading import num_cores, use_cores
from excl.pipeline.execution.work_items import VideoTask
from excl.workflows.cluster.dispatch import WorkerDiedError

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

ASK_EVERY_S = 1.0  # how many workers there are
MEND_EVERY_S = 30.0  # where there are fewer than there should be
OMP = "OMP_NUM_THREADS"
SAME_AS_LAST = 100  # messages, among which one is told once


class DaskPool:
    """The workers of a client that have the resources `needed`; `mend` sees to it that lost ones come back.

    Each works with so many `threads`, or with as many as there are for it where it is. `cores` is how many of its machine's
    cores each has, where the machine does not tell it.
    """

    def __init__(
        self,
        client: Client,
        needed: dict[str, float],
        *,
        mend: Callable[[int], None] | None = None,
        threads: int | None = None,
        cores: int | None = None,
    ) -> None:
        self.client, self.needed, self.mend = client, needed, mend
        self.threads, self.cores = threads, cores
        self.in_hand: dict[Future, ShardTask] = {}
        self._fit: set[str] = set()  # the addresses of workers that have our code
        self._capacity, self._asked_at = 0, float("-inf")
        self._mended_at = time.monotonic()

    def workers(self) -> dict[str, dict[str, Any]]:
        """What the scheduler knows of its workers, by address."""
        return dict(self.client.scheduler_info(n_workers=-1)["workers"])

    def capacity(self) -> int:
        """A task a thread, or as many as a worker's resources suffice for. ValueError if one of these has no such excl."""
        if time.monotonic() - self._asked_at > ASK_EVERY_S:
            self._require_scheduler()
            workers = self.workers()
            room = {address: self._fits(worker) for address, worker in workers.items()}
            self._capacity = sum(room.values())
            self._require_our_code({address for address in room if room[address]})
            self._asked_at = time.monotonic()
            if self.mend is not None and self._asked_at - self._mended_at > MEND_EVERY_S:
                self._mended_at = self._asked_at
                self.mend(len(workers))
        return self._capacity

    def _fits(self, worker: dict[str, Any]) -> int:
        offers = worker["resources"]
        return min([worker["nthreads"], *(int(offers.get(name, 0) // number) for name, number in self.needed.items())])

    def _require_our_code(self, addresses: set[str]) -> None:
        """Ask workers that are new, for a task that a worker cannot unpickle is never heard of again."""
        new = sorted(addresses - self._fit)
        answers = self.client.run(version_here, workers=new, on_error="return") if new else {}
        for address, found in answers.items():
            if isinstance(found, OSError):  # it is gone already
                continue
            if isinstance(found, Exception):
                raise ValueError(f"worker {address} cannot do this work ({found}); install excl {version_here()} there")
            if found != version_here():
                raise ValueError(f"worker {address} has excl {found}, this process {version_here()}; install the same")
            self._fit.add(address)

    def submit(self, work: ShardWork, task: ShardTask) -> None:
        """Have a task done by some worker."""
        seen_here = next((item.path for item in task.todo if item.path.exists()), None)
        needed = self.needed or None
        arguments = (work, task, seen_here, self.threads, self.cores)
        future = self.client.submit(do_task, *arguments, resources=needed, pure=False, key=task.journal)
        self.in_hand[future] = task

    def wait(self, timeout_s: float) -> list[tuple[ShardTask, list[Record] | Exception]]:
        """The tasks that have ended. OSError if the scheduler is gone."""
        if not self.in_hand:
            time.sleep(timeout_s)
            return []
        with contextlib.suppress(TimeoutError, FuturesCancelledError):
            wait(list(self.in_hand), timeout=timeout_s, return_when="FIRST_COMPLETED")
        self._require_scheduler()
        ended = [future for future in self.in_hand if future.done()]
        found = [(self.in_hand.pop(future), _outcome(future)) for future in ended]
        for future in ended:  # whose result is here: if its worker dies, nobody is to do it again
            future.release()
        return found

    def _require_scheduler(self) -> None:
        """Wait while the client tries to find its scheduler again; OSError when it has given up."""
        while self.client.status == "connecting":
            time.sleep(0.1)
        if self.client.status != "running":
            raise OSError(
                "the Dask scheduler is gone; what the workers had finished is kept, and the same command goes on from there"
            )

    def close(self) -> None:
        """Give up what is in hand."""
        if self.in_hand and self.client.status == "running":
            with contextlib.suppress(OSError, TimeoutError):
                self.client.cancel(list(self.in_hand))


def _outcome(future: Future) -> list[Record] | Exception:
    try:
        return future.result()
    except KilledWorker:
        return WorkerDiedError("a worker died")
    except Exception as error:  # noqa: BLE001  (the boundary to another process; it is raised again if it is no accident)
        if future.cancelled():
            return OSError("the connection to the scheduler was lost for a moment")
        return error


def threads_given() -> int | None:
    """How many threads OMP_NUM_THREADS says, if it does."""
    first = os.environ.get(OMP, "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def _threads_here() -> int:
    """How many threads a task has in this worker: as OMP_NUM_THREADS says, or its share of the cores.

    Where nothing is said, Dask's nanny says 1.
    """
    worker, given = this_worker(), threads_given()
    by_nanny = dask.config.get("distributed.nanny.pre-spawn-environ", {}).get(OMP)
    if given and (worker.nanny is None or str(given) != str(by_nanny)):
        return given
    return max(1, num_cores() // worker.state.nthreads)


def do_task(
    work: ShardWork, task: ShardTask, seen: Path | None, threads: int | None = None, cores: int | None = None
) -> list[Record]:
    """One task, in the worker's process. ValueError if the folders are not there.

    `seen` is a video that whoever sent the task can see. A task that is cancelled ends before its next video. Raises
    WorkerDiedError if there was an attempt at it: a scheduler that was not started here tries again what a worker died of.
    """
    for path in (work.out / HEADER, *filter(None, [seen])):
        if not path.is_file():
            raise ValueError(f"{path}: not there on {socket.gethostname()}; workers need the folders under the same paths")
    if attempts(work.out, task.journal)[0]:
        raise WorkerDiedError("a worker died")
    tasks = this_worker().state.tasks
    if cores is not None:
        use_cores(cores)
    torch.set_num_threads(threads or cores or _threads_here())

    def unless_cancelled(item: VideoTask) -> VideoRecord:
        state = tasks.get(task.journal)
        if state is None or state.state == "cancelled":
            raise RuntimeError(f"shard {task.shard}: nobody waits for it any more")
        return work.work(item)

    return run_shard(dataclasses.replace(work, work=unless_cancelled), task)


def version_here() -> str:
    """The version of excl; ImportError if what the work needs is not there."""
    importlib.import_module("excl.pipeline.extract")
    return importlib.metadata.version("excl")


@contextlib.contextmanager
def warnings_of_workers(client: Client) -> Iterator[None]:
    """Meanwhile what workers warn of is logged here, and what several say, or was said here, once."""
    ours = logging.getLogger("excl")
    recent = _Recent()
    name = f"excl-log-{client.id}"

    def tell(event: tuple[float, dict[str, Any]]) -> None:
        said = event[1]
        if said["msg"] not in recent.messages:
            record = logging.makeLogRecord({**said, "levelname": logging.getLevelName(said["levelno"])})
            logging.getLogger(record.name).handle(record)

    ours.addHandler(recent)
    client.subscribe_topic(name, tell)
    client.register_plugin(ForwardLoggingPlugin("excl", logging.WARNING, name), name)
    try:
        yield
    finally:
        ours.removeHandler(recent)
        if client.status == "running":
            with contextlib.suppress(OSError, TimeoutError):
                client.unregister_worker_plugin(name)


class _Recent(logging.Handler):
    """Knows what was logged last."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: deque[str] = deque(maxlen=SAME_AS_LAST)

    def emit(self, record: logging.LogRecord) -> None:
        """Called for each message."""
        self.messages.append(record.getMessage())
