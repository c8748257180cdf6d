"""Dask: workers for `dispatch.py`, on this machine, of a scheduler that runs already, or as jobs of a batch system."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dask
from dask.distributed import Client, Nanny, Scheduler, Security, SpecCluster, Worker, WorkerPlugin
from distributed.utils import LoopRunner

from excl.models.lazy_module import LazyModule
from excl.pipeline.execution.executor_settings import JOBS, LOCAL, ExecutorSettings
from excl.pipeline.execution.shard_work import Executor
from excl.pipeline.execution.video_reading import num_cores
from excl.workflows.cluster import batch_jobs
from excl.workflows.cluster.dask_workers import DaskPool, forward_warnings, omp_num_threads
from excl.workflows.cluster.dispatch import dispatch_executor

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
    settings: ExecutorSettings = config.running
    if not urlsplit(settings.executor).scheme:
        _require_dashboard(settings.dashboard)
    if settings.executor in JOBS:
        batch_jobs.jobqueue_options(settings)  # a ValueError before anything is looked at
    return run(config.elsewhere(), executor=dask_executor(settings, gpus=gpus(config)))


def dask_executor(settings: ExecutorSettings, *, gpus: list[str]) -> Executor:
    """Return the executor of these settings, whose workers are found or started when there is a first task."""
    return dispatch_executor(lambda: connect(settings, gpus=gpus))


def gpus(config: Any) -> list[str]:
    """Return the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them, if the workers of `local` are to use them."""
    device = getattr(config, "device", "cpu")
    if config.running.executor != LOCAL:
        return []
    if device not in ("auto", "cuda", "cpu", "mps"):
        raise ValueError(
            f"device: {device!r}: a worker has one device; give auto or cuda, and CUDA_VISIBLE_DEVICES for some of the GPUs"
        )
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in visible.split(",")] if visible else [str(n) for n in range(torch.cuda.device_count())]


@contextlib.contextmanager
def connect(settings: ExecutorSettings, *, gpus: list[str]) -> Iterator[DaskPool]:
    """Find or start the workers of these settings and yield them as a pool; those that were started here are ended."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        replace_lost: Callable[[int], None] | None = None
        threads = cores = None
        if urlsplit(settings.executor).scheme:
            client = stack.enter_context(_client_of_scheduler(settings))
            _require_workers(DaskPool(client, settings.required_resources()), settings.executor)
        else:
            is_local = settings.executor == LOCAL
            threads = omp_num_threads() if is_local else None  # before Dask sets OMP_NUM_THREADS
            cores = None if is_local else batch_jobs.num_cores_of_job(settings)
            stack.enter_context(_environment())
            loop = stack.enter_context(_loop())
            new_cluster = _local_cluster(settings, gpus, loop) if is_local else batch_jobs.job_cluster(settings, loop)
            with dask.config.set(A_TASK_AT_A_TIME):  # the scheduler reads it when it starts
                cluster = stack.enter_context(new_cluster)
            client = stack.enter_context(Client(cluster))
            if is_local:
                client.register_plugin(_LocalWorker(len(cluster.worker_spec)))
            replace_lost = _replace_local_workers(cluster) if is_local else batch_jobs.JobReplacer(cluster, settings)
            if importlib.util.find_spec("bokeh"):
                log.info("dashboard: %s", client.dashboard_link)
        stack.enter_context(forward_warnings(client))
        pool = DaskPool(client, settings.required_resources(), mend=replace_lost, threads=threads, cores=cores)
        yield stack.enter_context(contextlib.closing(pool))


def client_executor(client: Client, *, needed: dict[str, float] | None = None) -> Executor:
    """Return an executor over the workers of a client, those that have the resources `needed`."""
    return dispatch_executor(lambda: contextlib.closing(DaskPool(client, needed or {})))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the loggers of Dask and its libraries: what matters of their work is logged here."""
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
    """Restore the variables by which Dask tells the processes that it starts how many threads to use."""
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
    """Run an event loop in a thread; Ctrl-C on the terminal reaches neither it nor the processes that it starts."""
    resource_tracker.ensure_running()  # started later, it would unblock Ctrl-C in the thread that starts it
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


def _replace_local_workers(cluster: SpecCluster) -> Callable[[int], None]:
    """Return a function that starts workers in place of those that the cluster has given up."""

    def replace(num_workers: int) -> None:
        if num_workers < len(cluster.worker_spec):
            cluster.scale(len(cluster.worker_spec))

    return replace


@contextlib.contextmanager
def _local_cluster(settings: ExecutorSettings, gpus: list[str], loop: Any) -> Iterator[SpecCluster]:
    """Start workers in processes of their own on this machine: one for each GPU, which it sees alone, or for some cores."""
    number = settings.workers or len(gpus) or max(1, num_cores() // CORES_A_WORKER)
    scheduler = {
        "cls": Scheduler,
        "options": {"host": LOOPBACK, "port": 0, "dashboard": True, "dashboard_address": settings.dashboard},
    }
    log.info("executor: %d workers on this machine%s", number, f", on {min(number, len(gpus))} GPUs" if gpus else "")
    with SpecCluster(scheduler=scheduler, workers=local_workers(number, gpus), loop=loop) as cluster:
        try:
            yield cluster
        finally:
            for nanny in cluster.workers.values():  # killed: they hold nothing that is not on disk, and asking takes seconds
                nanny.close_gracefully()  # so that it does not start another
                if nanny.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(nanny.pid, signal.SIGKILL)


def local_workers(number: int, gpus: list[str]) -> dict[int, dict[str, Any]]:
    """Return the specifications of workers on this machine, by number; each sees one of the GPUs, if there are any."""
    threads = str(omp_num_threads() or max(1, num_cores() // number))
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


class _LocalWorker(WorkerPlugin):
    """The start of a worker on this machine: it takes its share of the cores, and leaves Ctrl-C to its parent."""

    name = "excl-local"

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def setup(self, worker: Worker) -> None:
        """Prepare the process. Dask calls this in the worker's main thread, before other threads work."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, share_of_cores(sorted(os.sched_getaffinity(0)), worker.name, self.workers))


def share_of_cores(cores: list[int], number: int, num_workers: int) -> list[int]:
    """Return the cores of worker `number`: at least one, and together the workers have all of them."""
    begin, end = (position * len(cores) // num_workers for position in (number, number + 1))
    return cores[begin : max(end, begin + 1)]


def _require_dashboard(address: str) -> None:
    """Raise ValueError for a malformed address, and OSError if nothing can listen at it on this machine."""
    host, colon, port = address.rpartition(":")
    if not port.isdigit() or int(port) > 65535 or not (colon or address.isdigit()):
        raise ValueError(
            f"dashboard: {address!r}: expected HOST:PORT, such as 127.0.0.1:8787, or port 0 for any that is free"
        )
    host = host.strip("[]")
    try:
        family, kind, _, _, place = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as listener:
            listener.bind(place)
    except OSError as error:
        raise OSError(
            f"dashboard: {address!r}: nothing can listen there ({error}); expected HOST:PORT with an address of this machine"
        ) from error


def _client_of_scheduler(settings: ExecutorSettings) -> Client:
    """Connect to a scheduler that runs already; OSError if none answers, ValueError if a certificate is missing."""
    security = None
    if settings.tls_ca is not None:
        for name in ("tls_ca", "tls_cert", "tls_key"):
            path: Path = getattr(settings, name)
            if not path.is_file():
                raise ValueError(f"{name}: {path}: there is no such file")
        security = Security(
            tls_ca_file=str(settings.tls_ca),
            tls_client_cert=str(settings.tls_cert),
            tls_client_key=str(settings.tls_key),
            require_encryption=True,
        )
    try:
        return Client(settings.executor, security=security, timeout=CONNECT_S)
    except (OSError, TimeoutError) as error:
        raise OSError(
            f"executor {settings.executor}: no Dask scheduler answers there ({error}); `dask scheduler` starts one"
        ) from error


def _require_workers(pool: DaskPool, address: str) -> None:
    """Raise ValueError if no worker of a scheduler would ever get work."""
    workers = pool.workers()
    if not workers:
        raise ValueError(
            f"executor {address}: the scheduler has no workers; start some with `dask worker {address} --nthreads 1`"
        )
    if not pool.capacity():
        required = ", ".join(f"{name}={number:g}" for name, number in pool.needed.items())
        offered = "; ".join(sorted({str(worker["resources"] or "none") for worker in workers.values()}))
        raise ValueError(
            f"executor {address}: none of its {len(workers)} workers has the resources {required} (they have: {offered}); "
            f"start them with `dask worker {address} --nthreads 1 --resources {required.replace(', ', ',')}`"
        )
