"""Workers that are jobs of a batch system, which dask-jobqueue submits: its settings from ours."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from typing import Any

import dask

from excl.pipeline.execution.executor_settings import ExecutorSettings
from excl.workflows.cluster import dask_nanny

log = logging.getLogger(__name__)

CLUSTERS = {"slurm": "SLURM", "pbs": "PBS", "sge": "SGE", "lsf": "LSF", "htcondor": "HTCondor", "oar": "OAR", "moab": "Moab"}
LINES = ("job_extra_directives", "job_script_prologue", "job_directives_skip")  # a line each time they are given
OF_SCHEDULER = ("host", "port")
SHARED = "shared_temp_directory"
LOOPBACK = "127.0.0.1:0"  # where a worker's own web server listens, which it has also without a dashboard
PROLOGUE = "job_script_prologue"
SHELLS = ("sh", "bash", "dash", "ksh", "zsh")
ID_IN_JOB = {  # the variable that a job finds its own id in
    "slurm": "SLURM_JOB_ID",
    "pbs": "PBS_JOBID",
    "sge": "JOB_ID",
    "lsf": "LSB_JOBID",
    "oar": "OAR_JOB_ID",
    "moab": "PBS_JOBID",
}
LOOK = {
    "slurm": "squeue --jobs",
    "pbs": "qstat",
    "sge": "qstat -j",
    "lsf": "bjobs",
    "htcondor": "condor_q",
    "oar": "oarstat -j",
    "moab": "checkjob",
}
TRIES = 3  # of each job, that ended before its worker came
ENDED_FOR_S = 60.0  # after which a job whose worker had come would be known to have lost it
TELL_AFTER_S = 300.0  # without any worker


@contextlib.contextmanager
def submitted(running: ExecutorSettings, loop: Any) -> Iterator[Any]:
    """A cluster whose workers are jobs, one each, submitted now; they are ended at the end.

    ValueError if settings are missing or wrong, OSError if the batch system refuses a job.
    """
    try:
        module, _ = map(importlib.import_module, ("dask_jobqueue", "cryptography"))
    except ModuleNotFoundError as error:
        raise ValueError(f"executor {running.executor}: `pip install 'excl[jobs]'` installs what it needs") from error
    kind = getattr(module, CLUSTERS[running.executor] + "Cluster")
    program = shlex.split(kind.job_cls.submit_command)[0]
    if shutil.which(program) is None:
        raise ValueError(f"executor {running.executor}: there is no program {program} here to submit jobs with")
    with certificates(running) as security:
        try:
            cluster = kind(loop=loop, security=security, **with_exit_markers(running, settings(running), _folder(security)))
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            told = " ".join(str(error).split(". Very likely")[0].split())
            raise ValueError(
                f"executor {running.executor}: dask-jobqueue's {kind.__name__} cannot begin with what --job says: {told}"
            ) from error
        with cluster:
            submit(cluster, running)
            log.info("executor: %d jobs submitted to %s; the work begins when they do", num_jobs(running), running.executor)
            yield cluster


@contextlib.contextmanager
def certificates(running: ExecutorSettings) -> Iterator[Any]:
    """What all who connect to the scheduler must have, for this run alone: the scheduler has to listen where nodes reach it.

    The files are in a folder that nodes see: dask-jobqueue's shared_temp_directory, or the working directory.
    """
    security = importlib.import_module("dask.distributed").Security
    made = security.temporary()
    given = dict(pair.split("=", 1) for pair in running.job)
    shared = (
        given.get(SHARED) or dask.config.get(f"jobqueue.{running.executor}.{SHARED.replace('_', '-')}", None) or os.getcwd()
    )
    where = os.path.expandvars(os.path.expanduser(shared))
    with tempfile.TemporaryDirectory(prefix=".excl-tls-", dir=where, ignore_cleanup_errors=True) as folder:
        paths = {}
        for name, text in (("ca", made.tls_ca_file), ("cert", made.tls_worker_cert), ("key", made.tls_worker_key)):
            paths[name] = os.path.join(folder, name)
            with open(paths[name], "w", encoding="ascii", opener=functools.partial(os.open, mode=0o600)) as file:
                file.write(text)
        of_roles = {
            f"tls_{role}_{name}": paths[name] for role in ("scheduler", "worker", "client") for name in ("cert", "key")
        }
        try:
            yield security(tls_ca_file=paths["ca"], require_encryption=True, **of_roles)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(paths["key"])  # first, for where it is gone jobs leave no marks any more


def _folder(security: Any) -> str:
    """The folder of the certificates."""
    return os.path.dirname(security.tls_ca_file)


def with_exit_markers(running: ExecutorSettings, given: dict[str, Any], folder: str) -> dict[str, Any]:
    """The settings, with which jobs also leave a file in a folder when they end, where they are scripts of a shell."""
    here = dask.config.get(f"jobqueue.{running.executor}", {})
    shebang = (given.get("shebang") or here.get("shebang") or "").split()
    is_shell = bool(shebang) and os.path.basename(shebang[-1]) in SHELLS
    older = given.get("env_extra") or here.get("env-extra")  # which counts only where there is no prologue
    if running.executor not in ID_IN_JOB or not is_shell or older:
        return given
    key, mark = (shlex.quote(os.path.join(folder, name)) for name in ("key", "ended-"))
    trap = shlex.quote(f'[ ! -e {key} ] || touch {mark}"${ID_IN_JOB[running.executor]}"')
    return {**given, PROLOGUE: [f"trap {trap} EXIT", *(given.get(PROLOGUE) or here.get("job-script-prologue") or [])]}


def num_jobs(running: ExecutorSettings) -> int:
    """How many jobs there are to be."""
    return running.workers or 1


def submit(cluster: Any, running: ExecutorSettings, ended: Collection[str] = ()) -> None:
    """Submit as many jobs as are missing, and others for those of the ids `ended`; OSError if that fails."""

    async def missing() -> None:
        for name, job in list(cluster.workers.items()):
            if job.job_id is None or job.job_id in ended:  # it was not accepted, or its worker never came
                job.status = type(job.status).closed
                del cluster.workers[name]
        await cluster

    while len(cluster.worker_spec) < num_jobs(running):
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        cluster.sync(missing)
    except (RuntimeError, ValueError) as error:  # of dask-jobqueue, with the output of the program over many lines
        for job in cluster.workers.values():
            job.status = job.status if job.job_id else type(job.status).failed
        raise OSError(f"executor {running.executor}: a job was not accepted: {' '.join(str(error).split())}") from error


class JobReplacer:
    """Submits jobs in place of those that are gone; a batch system that refuses them now is asked again later.

    A job that ends before its worker comes is tried so many times; OSError if no worker has come by then.
    """

    def __init__(self, cluster: Any, running: ExecutorSettings) -> None:
        self.cluster, self.running = cluster, running
        self.num_lost, self.told = 0, False
        self.none_since = time.monotonic()
        self.ended_at: dict[str, float] = {}  # when it was seen, by job id

    def __call__(self, number: int) -> None:
        """Called from time to time, with the number of workers that there are."""
        if number:
            self.num_lost, self.told, self.none_since = 0, False, time.monotonic()
        if number >= num_jobs(self.running):
            return
        lost = self._lost()
        self.num_lost += len(lost)
        if not number and self.num_lost >= TRIES * num_jobs(self.running):
            raise OSError(
                f"executor {self.running.executor}: {self.num_lost} jobs ended before their worker came, the last of them "
                f"{', '.join(lost)}; {self._where_told()}"
            )
        if not number and not self.told and time.monotonic() - self.none_since > TELL_AFTER_S:
            self.told = True
            ids = [job.job_id for job in self.cluster.workers.values() if job.job_id]
            look = f"{LOOK[self.running.executor]} {(',' if self.running.executor == 'slurm' else ' ').join(ids)}"
            log.warning("no worker has come of the jobs yet; `%s` says whether they wait; %s", look, self._where_told())
        try:
            submit(self.cluster, self.running, lost)
        except OSError as error:
            log.warning("%s", error)

    def _lost(self) -> list[str]:
        """The ids of jobs that have ended and are still believed to come: one whose worker is gone is taken off by Dask."""
        names = os.listdir(_folder(self.cluster.security))
        ended = {found[1] for name in names if (found := re.match(r"ended-(\d+)", name))}
        now = time.monotonic()
        ids = [job.job_id for job in self.cluster.workers.values() if job.job_id in ended]
        return [job_id for job_id in ids if now - self.ended_at.setdefault(job_id, now) >= ENDED_FOR_S]

    def _where_told(self) -> str:
        """Where to read what jobs print."""
        directories = {job.log_directory for job in self.cluster.workers.values()} - {None}
        if directories:
            return f"what they print is in {os.path.abspath(directories.pop())}"
        where = f"in most cases in {os.getcwd()}"
        return (
            f"what they print is where {self.running.executor} puts it, {where} (--job log_directory=DIR chooses a folder)"
        )


def cores(running: ExecutorSettings) -> int | None:
    """How many cores a job has, by --job or dask-jobqueue's own configuration; None where neither says a number.

    They are also the threads of its worker: many clusters do not bind a job to the cores that it has.
    """
    given = dict(pair.split("=", 1) for pair in running.job)
    here = dask.config.get(f"jobqueue.{given.get('config_name', running.executor)}", {})
    number = str(given.get("cores") or here.get("cores") or "").strip()
    return int(number) if number.isdigit() and int(number) > 0 else None


def settings(running: ExecutorSettings) -> dict[str, Any]:
    """What dask-jobqueue is told: what was given, over what its own configuration says.

    One worker a job, with one thread: it takes one shard at a time and uses all the job's cores for that.
    """
    here = dask.config.get(f"jobqueue.{running.executor}", {})
    given: dict[str, Any] = {}
    extra = ["--dashboard-address", LOOPBACK, *(here.get("worker-extra-args") or [])]
    scheduler = {**(here.get("scheduler-options") or {}), "dashboard_address": running.dashboard}
    for pair in running.job:
        name, _, text = (part.strip() for part in pair.partition("="))
        value = int(text) if text.isdigit() else text
        if name in OF_SCHEDULER:
            scheduler[name] = value
        elif name == "worker_extra_args":
            extra += shlex.split(text)
        elif name in LINES:
            given.setdefault(name, list(here.get(name.replace("_", "-")) or [])).append(text)
        else:
            given[name] = value
    if "config_name" not in given and any((given.get(name) or here.get(name)) is None for name in ("cores", "memory")):
        raise ValueError(
            f"executor {running.executor}: --job needs at least cores=… and memory=…, such as --job cores=8 memory=32GB "
            "walltime=04:00:00"
        )
    if given.get("processes", 1) != 1:
        raise ValueError("job: processes: a job is one worker here; --workers says how many jobs there are")
    extra += ["--nthreads", "1", "--no-dashboard", "--preload-nanny", dask_nanny.__name__]
    if running.resources:
        extra += ["--resources", shlex.quote(",".join(running.resources))]
    return {
        **given,
        "processes": 1,
        "worker_extra_args": extra,
        "scheduler_options": scheduler,
    }
