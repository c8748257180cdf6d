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
from typing import Any, NamedTuple

import dask

from excl.pipeline.execution.executor_settings import ExecutorSettings
from excl.workflows.cluster import dask_nanny

log = logging.getLogger(__name__)


class BatchSystem(NamedTuple):
    """A batch system: its name in dask-jobqueue, the variable in which a job finds its own id, the command to see jobs."""

    name: str
    id_variable: str | None
    look: str


SYSTEMS = {
    "slurm": BatchSystem("SLURM", "SLURM_JOB_ID", "squeue --jobs"),
    "pbs": BatchSystem("PBS", "PBS_JOBID", "qstat"),
    "sge": BatchSystem("SGE", "JOB_ID", "qstat -j"),
    "lsf": BatchSystem("LSF", "LSB_JOBID", "bjobs"),
    "htcondor": BatchSystem("HTCondor", None, "condor_q"),
    "oar": BatchSystem("OAR", "OAR_JOB_ID", "oarstat -j"),
    "moab": BatchSystem("Moab", "PBS_JOBID", "checkjob"),
}
LINES = ("job_extra_directives", "job_script_prologue", "job_directives_skip")  # each --job of this name adds a line
OF_SCHEDULER = ("host", "port")
LOOPBACK = "127.0.0.1:0"  # where a worker's own web server listens, which it has also without a dashboard
SHELLS = ("sh", "bash", "dash", "ksh", "zsh")
TRIES = 3  # of each job that ends before its worker comes
ENDED_FOR_S = 60.0  # after which a job whose worker had come would be known to have lost it
TELL_AFTER_S = 300.0  # without any worker


@contextlib.contextmanager
def job_cluster(settings: ExecutorSettings, loop: Any) -> Iterator[Any]:
    """Submit jobs of one worker each, and yield their cluster; the jobs are ended at the end.

    Raises ValueError if settings are missing or wrong, OSError if the batch system refuses a job.
    """
    try:
        module, _ = map(importlib.import_module, ("dask_jobqueue", "cryptography"))
    except ModuleNotFoundError as error:
        raise ValueError(f"executor {settings.executor}: `pip install 'excl[jobs]'` installs what it needs") from error
    kind = getattr(module, SYSTEMS[settings.executor].name + "Cluster")
    program = shlex.split(kind.job_cls.submit_command)[0]
    if shutil.which(program) is None:
        raise ValueError(f"executor {settings.executor}: there is no program {program} here to submit jobs with")
    with certificates(settings) as security:
        options = add_exit_markers(settings, jobqueue_options(settings), _folder(security))
        try:
            # Dask's loggers are silenced elsewhere; it would do so by the levels of handlers, which others may use, too.
            cluster = kind(loop=loop, security=security, **{"silence_logs": False, **options})
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split(". Very likely")[0].split())
            raise ValueError(
                f"executor {settings.executor}: dask-jobqueue's {kind.__name__} cannot begin with what --job says: {reason}"
            ) from error
        with cluster:
            submit(cluster, settings)
            text = "executor: %d jobs submitted to %s; the work begins when they do"
            log.info(text, num_jobs(settings), settings.executor)
            yield cluster


@contextlib.contextmanager
def certificates(settings: ExecutorSettings) -> Iterator[Any]:
    """Make what all who connect to the scheduler must have, for this run alone: the scheduler listens where nodes reach it.

    The files are in a folder that nodes see: dask-jobqueue's shared_temp_directory, or the working directory.
    """
    security = importlib.import_module("dask.distributed").Security
    temporary = security.temporary()
    shared = _flags(settings).get("shared_temp_directory") or _configured(settings).get("shared-temp-directory")
    parent = os.path.expandvars(os.path.expanduser(shared or os.getcwd()))
    with tempfile.TemporaryDirectory(prefix=".excl-tls-", dir=parent, ignore_cleanup_errors=True) as folder:
        texts = {"ca": temporary.tls_ca_file, "cert": temporary.tls_worker_cert, "key": temporary.tls_worker_key}
        paths = {name: os.path.join(folder, name) for name in texts}
        for name, text in texts.items():
            with open(paths[name], "w", encoding="ascii", opener=functools.partial(os.open, mode=0o600)) as file:
                file.write(text)
        role_files = {
            f"tls_{role}_{name}": paths[name] for role in ("scheduler", "worker", "client") for name in ("cert", "key")
        }
        try:
            yield security(tls_ca_file=paths["ca"], require_encryption=True, **role_files)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(paths["key"])  # before the rest: without it jobs leave no marks any more


def _folder(security: Any) -> str:
    """Return the folder of the certificates."""
    return os.path.dirname(security.tls_ca_file)


def _flags(settings: ExecutorSettings) -> dict[str, str]:
    """Return what --job says by name; the last of several."""
    return {name.strip(): text.strip() for name, _, text in (pair.partition("=") for pair in settings.job)}


def _configured(settings: ExecutorSettings) -> dict[str, Any]:
    """Return dask-jobqueue's own configuration (jobqueue.yaml) of the batch system, or of what --job config_name names."""
    return dask.config.get(f"jobqueue.{_flags(settings).get('config_name', settings.executor)}", {})


def add_exit_markers(settings: ExecutorSettings, options: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return options with which jobs also leave a file in a folder when they end, where they are scripts of a shell."""
    configured = _configured(settings)
    shebang = (options.get("shebang") or configured.get("shebang") or "").split()
    is_shell = bool(shebang) and os.path.basename(shebang[-1]) in SHELLS
    env_extra = options.get("env_extra") or configured.get("env-extra")  # older; it counts only where there is no prologue
    id_variable = SYSTEMS[settings.executor].id_variable
    if not id_variable or not is_shell or env_extra:
        return options
    key, mark = (shlex.quote(os.path.join(folder, name)) for name in ("key", "ended-"))
    trap = shlex.quote(f'[ ! -e {key} ] || touch {mark}"${id_variable}"')
    prologue = options.get("job_script_prologue") or configured.get("job-script-prologue") or []
    return {**options, "job_script_prologue": [f"trap {trap} EXIT", *prologue]}


def num_jobs(settings: ExecutorSettings) -> int:
    """Return how many jobs there are to be."""
    return settings.workers or 1


def submit(cluster: Any, settings: ExecutorSettings, ended: Collection[str] = ()) -> None:
    """Submit as many jobs as are missing, and others for those of the ids `ended`; OSError if that fails."""

    async def submit_missing() -> None:
        for name, job in list(cluster.workers.items()):
            if job.job_id is None or job.job_id in ended:  # it was not accepted, or its worker never came
                job.status = type(job.status).closed
                del cluster.workers[name]
        await cluster

    while len(cluster.worker_spec) < num_jobs(settings):
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        cluster.sync(submit_missing)
    except (RuntimeError, ValueError) as error:  # of dask-jobqueue, with the output of the program over many lines
        for job in cluster.workers.values():
            job.status = job.status if job.job_id else type(job.status).failed
        raise OSError(f"executor {settings.executor}: a job was not accepted: {' '.join(str(error).split())}") from error


class JobReplacer:
    """Submits jobs in place of those that are gone, and asks a batch system that refuses them again later.

    A job that ends before its worker comes is tried so many times; OSError if no worker has come by then.
    """

    def __init__(self, cluster: Any, settings: ExecutorSettings) -> None:
        self.cluster, self.settings = cluster, settings
        self.num_lost, self.has_warned = 0, False
        self.idle_since = time.monotonic()
        self.ended_at: dict[str, float] = {}  # by job id, when its end was seen

    def __call__(self, num_workers: int) -> None:
        """Submit what is missing. This is called from time to time, with the number of workers that there are."""
        if num_workers:
            self.num_lost, self.has_warned, self.idle_since = 0, False, time.monotonic()
        if num_workers >= num_jobs(self.settings):
            return
        lost = self._lost()
        self.num_lost += len(lost)
        if not num_workers and self.num_lost >= TRIES * num_jobs(self.settings):
            raise OSError(
                f"executor {self.settings.executor}: {self.num_lost} jobs ended before their worker came, the last of them "
                f"{', '.join(lost)}; {self._output_hint()}"
            )
        if not num_workers and not self.has_warned and time.monotonic() - self.idle_since > TELL_AFTER_S:
            self.has_warned = True
            ids = [job.job_id for job in self.cluster.workers.values() if job.job_id]
            separator = "," if self.settings.executor == "slurm" else " "
            look = f"{SYSTEMS[self.settings.executor].look} {separator.join(ids)}"
            log.warning("no worker has come of the jobs yet; `%s` says whether they wait; %s", look, self._output_hint())
        try:
            submit(self.cluster, self.settings, lost)
        except OSError as error:
            log.warning("%s", error)

    def _lost(self) -> list[str]:
        """Return the ids of jobs that have ended and are still expected; Dask itself removes a job whose worker is gone."""
        names = os.listdir(_folder(self.cluster.security))
        ended = {match[1] for name in names if (match := re.match(r"ended-(\d+)", name))}
        seen_at = time.monotonic()
        ids = [job.job_id for job in self.cluster.workers.values() if job.job_id in ended]
        return [job_id for job_id in ids if seen_at - self.ended_at.setdefault(job_id, seen_at) >= ENDED_FOR_S]

    def _output_hint(self) -> str:
        """Return the words that say where to read what jobs print."""
        directories = {job.log_directory for job in self.cluster.workers.values()} - {None}
        if directories:
            return f"what they print is in {os.path.abspath(directories.pop())}"
        return (
            f"what they print is where {self.settings.executor} puts it, in most cases in {os.getcwd()} "
            "(--job log_directory=DIR chooses a folder)"
        )


def num_cores_of_job(settings: ExecutorSettings) -> int | None:
    """Return how many cores a job has, by --job or dask-jobqueue's own configuration; None where neither says a number.

    They are also the threads of its worker: many clusters do not bind a job to the cores that it has.
    """
    number = str(_flags(settings).get("cores") or _configured(settings).get("cores") or "").strip()
    return int(number) if number.isdigit() and int(number) > 0 else None


def jobqueue_options(settings: ExecutorSettings) -> dict[str, Any]:
    """Return the arguments of dask-jobqueue's cluster: what --job says, over what its own configuration says.

    One worker a job, with one thread: it takes one shard at a time and uses all the job's cores for that.
    """
    configured = _configured(settings)
    options: dict[str, Any] = {}
    worker_arguments = ["--dashboard-address", LOOPBACK, *(configured.get("worker-extra-args") or [])]
    scheduler = {**(configured.get("scheduler-options") or {}), "dashboard_address": settings.dashboard}
    for pair in settings.job:
        name, _, text = (part.strip() for part in pair.partition("="))
        value = int(text) if text.isdigit() else text
        if name in OF_SCHEDULER:
            scheduler[name] = value
        elif name == "worker_extra_args":
            worker_arguments += shlex.split(text)
        elif name in LINES:
            options.setdefault(name, list(configured.get(name.replace("_", "-")) or [])).append(text)
        else:
            options[name] = value
    if "config_name" not in options and any(
        (options.get(name) or configured.get(name)) is None for name in ("cores", "memory")
    ):
        raise ValueError(
            f"executor {settings.executor}: --job needs at least cores=… and memory=…, such as --job cores=8 memory=32GB "
            "walltime=04:00:00"
        )
    if options.get("processes", 1) != 1:
        raise ValueError("job: processes: a job is one worker here; --workers says how many jobs there are")
    worker_arguments += ["--nthreads", "1", "--no-dashboard", "--preload-nanny", dask_nanny.__name__]
    if settings.resources:
        worker_arguments += ["--resources", shlex.quote(",".join(settings.resources))]
    return {**options, "processes": 1, "worker_extra_args": worker_arguments, "scheduler_options": scheduler}
