"""A pool of Dask's workers for `dispatch.py`, and the work on a shard in such a worker.

Only this file and `dask_cluster.py`, which finds or starts the workers, import dask.distributed. The scheduler holds nothing
that the folder does not have: a worker returns the records of its shard, and a run that resumes reads the folder alone.
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

from excl.models.lazy_module import LazyModule
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.journals import attempts
from excl.pipeline.artifacts.record_log import Record
from excl.pipeline.artifacts.video_records import VideoRecord
from excl.pipeline.execution.pending_videos import VideoTask
from excl.pipeline.execution.shard_work import ShardTask, ShardWork, run_shard
from excl.pipeline.execution.video_reading import num_cores, use_cores
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
    """The workers of a client that have the resources `needed`; `mend` replaces lost ones.

    Each uses so many `threads`, or as many as its machine has for it. `cores` is how many of its machine's cores each has,
    where the machine does not tell it.
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
        self._checked: set[str] = set()  # the addresses of workers that have our code
        self._capacity, self._asked_at = 0, float("-inf")
        self._mended_at = time.monotonic()

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the scheduler's description of its workers, by address."""
        return dict(self.client.scheduler_info(n_workers=-1)["workers"])

    def capacity(self) -> int:
        """Return how many tasks the workers take: one a thread, or as many as a worker's resources suffice for.

        Raises ValueError if one of these workers has another excl, or none.
        """
        if time.monotonic() - self._asked_at > ASK_EVERY_S:
            self._require_scheduler()
            workers = self.workers()
            num_tasks = {address: self._num_tasks(worker) for address, worker in workers.items()}
            self._capacity = sum(num_tasks.values())
            self._require_our_code({address for address in num_tasks if num_tasks[address]})
            self._asked_at = time.monotonic()
            if self.mend is not None and self._asked_at - self._mended_at > MEND_EVERY_S:
                self._mended_at = self._asked_at
                self.mend(len(workers))
        return self._capacity

    def _num_tasks(self, worker: dict[str, Any]) -> int:
        offers = worker["resources"]
        return min([worker["nthreads"], *(int(offers.get(name, 0) // number) for name, number in self.needed.items())])

    def _require_our_code(self, addresses: set[str]) -> None:
        """Ask new workers for their version: Dask never reports a task that a worker cannot unpickle."""
        new_addresses = sorted(addresses - self._checked)
        answers = self.client.run(excl_version, workers=new_addresses, on_error="return") if new_addresses else {}
        for address, answer in answers.items():
            if isinstance(answer, OSError):  # it is gone already
                continue
            if isinstance(answer, Exception):
                raise ValueError(f"worker {address} cannot do this work ({answer}); install excl {excl_version()} there")
            if answer != excl_version():
                raise ValueError(f"worker {address} has excl {answer}, this process {excl_version()}; install the same")
            self._checked.add(address)

    def submit(self, work: ShardWork, task: ShardTask) -> None:
        """Have a task done by some worker."""
        sample_path = next((item.path for item in task.todo if item.path.exists()), None)
        arguments = (work, task, sample_path, self.threads, self.cores)
        future = self.client.submit(do_task, *arguments, resources=self.needed or None, pure=False, key=task.journal)
        self.in_hand[future] = task

    def wait(self, timeout_s: float) -> list[tuple[ShardTask, list[Record] | Exception]]:
        """Return the tasks that have ended; OSError if the scheduler is gone."""
        if not self.in_hand:
            time.sleep(timeout_s)
            return []
        with contextlib.suppress(TimeoutError, FuturesCancelledError):
            wait(list(self.in_hand), timeout=timeout_s, return_when="FIRST_COMPLETED")
        self._require_scheduler()
        ended = [future for future in self.in_hand if future.done()]
        outcomes = [(self.in_hand.pop(future), _outcome(future)) for future in ended]
        for future in ended:  # so that Dask does not repeat it if its worker dies
            future.release()
        return outcomes

    def _require_scheduler(self) -> None:
        """Wait while the client reconnects to its scheduler; OSError when it has given up."""
        while self.client.status == "connecting":
            time.sleep(0.1)
        if self.client.status != "running":
            raise OSError(
                "the Dask scheduler is gone; what the workers finished is kept, and the same command continues from there"
            )

    def close(self) -> None:
        """Cancel the tasks in hand."""
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


def omp_num_threads() -> int | None:
    """Return the number of threads in OMP_NUM_THREADS, if there is one."""
    number = os.environ.get(OMP, "").split(",")[0].strip()
    return int(number) if number.isdigit() and int(number) > 0 else None


def _threads_of_task() -> int:
    """Return how many threads a task has in this worker: as many as OMP_NUM_THREADS says, or its share of the cores.

    Where the user has not set OMP_NUM_THREADS, Dask's nanny sets it to 1; that value does not count.
    """
    worker, number = this_worker(), omp_num_threads()
    nanny_default = dask.config.get("distributed.nanny.pre-spawn-environ", {}).get(OMP)
    if number and (worker.nanny is None or str(number) != str(nanny_default)):
        return number
    return max(1, num_cores() // worker.state.nthreads)


def do_task(
    work: ShardWork, task: ShardTask, sample_path: Path | None, threads: int | None = None, cores: int | None = None
) -> list[Record]:
    """Do one task in the worker's process; ValueError if the folders do not exist.

    `sample_path` is a video that the sender of the task can see. A task that is cancelled ends before its next video. Raises
    WorkerDiedError if there was an attempt at it: a scheduler that was not started here repeats what a worker died of.
    """
    for path in (work.out / HEADER, *filter(None, [sample_path])):
        if not path.is_file():
            raise ValueError(f"{path}: not there on {socket.gethostname()}; workers need the folders under the same paths")
    if attempts(work.out, task.journal)[0]:
        raise WorkerDiedError("a worker died")
    states = this_worker().state.tasks
    if cores is not None:
        use_cores(cores)
    torch.set_num_threads(threads or cores or _threads_of_task())

    def work_unless_cancelled(item: VideoTask) -> VideoRecord:
        state = states.get(task.journal)
        if state is None or state.state == "cancelled":
            raise RuntimeError(f"shard {task.shard}: nobody waits for it any more")
        return work.work(item)

    return run_shard(dataclasses.replace(work, work=work_unless_cancelled), task)


def excl_version() -> str:
    """Return the version of excl; ImportError if what the work needs is not installed."""
    importlib.import_module("excl.pipeline.extract")
    return importlib.metadata.version("excl")


@contextlib.contextmanager
def forward_warnings(client: Client) -> Iterator[None]:
    """Log the warnings of workers in this process; one that several send, or that was logged here, is logged once."""
    ours = logging.getLogger("excl")
    recent = _Recent()
    name = f"excl-log-{client.id}"

    def log_event(event: tuple[float, dict[str, Any]]) -> None:
        fields = event[1]
        if fields["msg"] not in recent.messages:
            record = logging.makeLogRecord({**fields, "levelname": logging.getLevelName(fields["levelno"])})
            logging.getLogger(record.name).handle(record)

    ours.addHandler(recent)
    client.subscribe_topic(name, log_event)
    client.register_plugin(ForwardLoggingPlugin("excl", logging.WARNING, name), name)
    try:
        yield
    finally:
        ours.removeHandler(recent)
        if client.status == "running":
            with contextlib.suppress(OSError, TimeoutError):
                client.unregister_worker_plugin(name)


class _Recent(logging.Handler):
    """A handler that remembers the latest messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: deque[str] = deque(maxlen=SAME_AS_LAST)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember a message."""
        self.messages.append(record.getMessage())
