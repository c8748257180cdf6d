"""Dask: workers for `dispatch.py`, on this machine, of a scheduler that runs already, or as jobs of a batch system."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dask
from dask.distributed import Client, Nanny, Scheduler, Security, SpecCluster, Worker, WorkerPlugin
from distributed.utils import LoopRunner

from excl.pipeline.artifacts.lazy_module import LazyModule
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.record_log import Record
from excl.pipeline.execution.executor_settings import JOBS, LOCAL, ExecutorSettings
from excl.pipeline.execution.executors import Executor, ShardTask, ShardWork
from excl.pipeline.execution.interrupts import Interrupt
from excl.pipeline.execution.video_reading import num_cores
from excl.workflows.cluster import batch_jobs
from excl.workflows.cluster.dask_workers import DaskPool, threads_given, warnings_of_workers
from excl.workflows.cluster.dispatch import dispatched

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

log = logging.getLogger(__name__)

CORES_A_WORKER = 4
LOOPBACK = "127.0.0.1"
CONNECT_S = 10.0
A_TASK_AT_A_TIME = {  # and a death counts against it at once: dispatch.py, which has what was finished, tries it again
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-saturation": 1.0,
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
NOISY = ("distributed", "bokeh", "tornado", "asyncio")


def run_on_workers(run: Callable[..., Any], config: Any) -> Any:
    """Run a stage with the workers that its configuration asks for, if it has something to do."""
    if not urlsplit(config.running.executor).scheme:
        _require_dashboard(config.running.dashboard)
    if config.running.executor in JOBS:
        batch_jobs.settings(config.running)  # a ValueError before anything is looked at
    return run(config.elsewhere(), executor=once_needed(config.running, gpus=gpus(config)))


def once_needed(running: ExecutorSettings, *, gpus: list[str]) -> Executor:
    """The executor of these settings, whose workers are found or started when there is a first task."""

    def execute(
        work: ShardWork, tasks: Iterable[ShardTask], manifest: Manifest, stop: Interrupt
    ) -> Generator[Record, None, None]:
        left = iter(tasks)
        first = next(left, None)
        if first is not None:
            with connected(running, gpus=gpus) as executor:
                yield from executor(work, itertools.chain([first], left), manifest, stop)

    return execute


def gpus(config: Any) -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them, if the workers of `local` are to use them."""
    wanted = getattr(config, "device", "cpu")
    if config.running.executor != LOCAL:
        return []
    if wanted not in ("auto", "cuda", "cpu", "mps"):
        raise ValueError(
            f"device: {wanted!r}: a worker has one device; give auto or cuda, and CUDA_VISIBLE_DEVICES for some of the GPUs"
        )
    if wanted not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in visible.split(",")] if visible else [str(n) for n in range(torch.cuda.device_count())]


@contextlib.contextmanager
def connected(running: ExecutorSettings, *, gpus: list[str]) -> Iterator[Executor]:
    """The executor of these settings, while its workers are held."""
    with contextlib.ExitStack() as held:
        held.enter_context(_quiet())
        mend: Callable[[int], None] | None = None
        threads = cores = None
        if urlsplit(running.executor).scheme:
            client = held.enter_context(_existing(running))
            _require_workers(DaskPool(client, running.required_resources()), running.executor)
        else:
            if running.executor == LOCAL:
                threads = threads_given()  # before Dask says something there
            else:
                cores = batch_jobs.cores(running)
            held.enter_context(_environment())
            loop = held.enter_context(_loop())
            starting = _local(running, gpus, loop) if running.executor == LOCAL else batch_jobs.submitted(running, loop)
            with dask.config.set(A_TASK_AT_A_TIME):  # the scheduler reads it when it starts
                cluster = held.enter_context(starting)
            client = held.enter_context(Client(cluster))
            mend = _mending(cluster, running)
            if running.executor == LOCAL:
                client.register_plugin(_LocalWorker(len(cluster.worker_spec)))
            if importlib.util.find_spec("bokeh"):
                log.info("dashboard: %s", client.dashboard_link)
        held.enter_context(warnings_of_workers(client))
        yield on_cluster(client, needed=running.required_resources(), mend=mend, threads=threads, cores=cores)


def on_cluster(
    client: Client,
    *,
    needed: dict[str, float] | None = None,
    mend: Callable[[int], None] | None = None,
    threads: int | None = None,
    cores: int | None = None,
) -> Executor:
    """An executor over the workers of a client, those that have the resources `needed`."""
    return dispatched(lambda: contextlib.closing(DaskPool(client, needed or {}, mend=mend, threads=threads, cores=cores)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Meanwhile Dask says nothing of what it does: what matters of it is said here."""
    levels = {name: logging.getLogger(name).level for name in NOISY}
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Meanwhile Dask may say in the environment how many threads the processes have that it starts."""
    earlier = {name: os.environ.get(name) for name in THREADS}
    try:
        yield
    finally:
        for name, value in earlier.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _loop() -> Iterator[Any]:
    """An event loop in a thread which Ctrl-C on the terminal does not reach, nor the processes that are started from it."""
    resource_tracker.ensure_running()  # which would let Ctrl-C through again to the thread that starts it
    runner = LoopRunner(asynchronous=False)
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    try:
        yield runner.loop
    finally:
        runner.stop()


def _mending(cluster: Any, running: ExecutorSettings) -> Callable[[int], None]:
    """What to do where there are fewer workers than there should be: start those that the cluster has given up."""

    def mend(number: int) -> None:
        if number < len(cluster.worker_spec):
            cluster.scale(len(cluster.worker_spec))

    return mend if running.executor == LOCAL else batch_jobs.JobReplacer(cluster, running)


@contextlib.contextmanager
def _local(running: ExecutorSettings, gpus: list[str], loop: Any) -> Iterator[SpecCluster]:
    """Workers in processes of their own on this machine: one a GPU, which sees that alone, or one for some cores."""
    number = running.workers or len(gpus) or max(1, num_cores() // CORES_A_WORKER)
    scheduler = {
        "cls": Scheduler,
        "options": {"host": LOOPBACK, "port": 0, "dashboard": True, "dashboard_address": running.dashboard},
    }
    log.info("executor: %d workers on this machine%s", number, f", on {min(number, len(gpus))} GPUs" if gpus else "")
    with SpecCluster(scheduler=scheduler, workers=local_workers(number, gpus), loop=loop) as cluster:
        try:
            yield cluster
        finally:
            _kill_workers(cluster)


def local_workers(number: int, gpus: list[str]) -> dict[int, dict[str, Any]]:
    """What Dask is told of so many workers on this machine, by number; each sees one of the GPUs, if there are any."""
    threads = str(threads_given() or max(1, num_cores() // number))
    workers = {}
    for index in range(number):
        env = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        options = {
            "nthreads": 1,
            "env": env,
            "host": LOOPBACK,
            "memory_limit": 0,  # none
            "dashboard": False,
            "silence_logs": logging.CRITICAL,
        }
        workers[index] = {"cls": Nanny, "options": options}
    return workers


def _kill_workers(cluster: SpecCluster) -> None:
    """End the workers, which hold nothing that is not on the disk; if they were asked to, it would take seconds."""
    for nanny in cluster.workers.values():
        nanny.close_gracefully()  # so that it does not start another
        if nanny.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


class _LocalWorker(WorkerPlugin):
    """What a worker on this machine does first: it takes its share of the cores, and leaves Ctrl-C to its parent."""

    name = "excl-local"

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def setup(self, worker: Worker) -> None:
        """Called in the worker's main thread, before there are others that work."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, share_of_cores(sorted(os.sched_getaffinity(0)), worker.name, self.workers))


def share_of_cores(cores: list[int], number: int, of: int) -> list[int]:
    """The cores of one of so many workers: together all of them, and one at least."""
    first, last = (position * len(cores) // of for position in (number, number + 1))
    return cores[first : max(last, first + 1)]


def _require_dashboard(address: str) -> None:
    """ValueError for what is no address, OSError for one that is none of this machine."""
    host, colon, port = address.rpartition(":")
    if not port.isdigit() or int(port) > 65535 or not (colon or address.isdigit()):
        raise ValueError(f"dashboard: {address!r}: wanted HOST:PORT, such as 127.0.0.1:8787, or port 0 for any that is free")
    host = host.strip("[]")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as listener:
            listener.bind(where)
    except OSError as error:
        raise OSError(
            f"dashboard: {address!r}: nothing can listen there ({error}); wanted HOST:PORT, with an address of this machine"
        ) from error


def _existing(running: ExecutorSettings) -> Client:
    """A client of a scheduler that runs already; OSError if none answers, ValueError for certificates that are not there."""
    security = None
    if running.tls_ca is not None:
        for name in ("tls_ca", "tls_cert", "tls_key"):
            path: Path = getattr(running, name)
            if not path.is_file():
                raise ValueError(f"{name}: {path}: there is no such file")
        security = Security(
            tls_ca_file=str(running.tls_ca),
            tls_client_cert=str(running.tls_cert),
            tls_client_key=str(running.tls_key),
            require_encryption=True,
        )
    try:
        return Client(running.executor, security=security, timeout=CONNECT_S)
    except (OSError, TimeoutError) as error:
        raise OSError(
            f"executor {running.executor}: no Dask scheduler answers there ({error}); `dask scheduler` starts one"
        ) from error


def _require_workers(pool: DaskPool, address: str) -> None:
    """ValueError if no worker of a scheduler would ever get work."""
    workers = pool.workers()
    if not workers:
        raise ValueError(
            f"executor {address}: the scheduler has no workers; start some with `dask worker {address} --nthreads 1`"
        )
    if not pool.capacity():
        wanted = ", ".join(f"{name}={number:g}" for name, number in pool.needed.items())
        found = "; ".join(sorted({str(worker["resources"] or "none") for worker in workers.values()}))
        raise ValueError(
            f"executor {address}: none of its {len(workers)} workers has the resources {wanted} (they have: {found}); start "
            f"them with `dask worker {address} --nthreads 1 --resources {wanted.replace(', ', ',')}`"
        )
