"""Workers that are jobs of a batch system, which dask-jobqueue submits: its settings from ours."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import dask

from excl.pipeline.running import Running

log = logging.getLogger(__name__)

CLUSTERS = {"slurm": "SLURM", "pbs": "PBS", "sge": "SGE", "lsf": "LSF", "htcondor": "HTCondor", "oar": "OAR", "moab": "Moab"}
LINES = ("job_extra_directives", "job_script_prologue", "job_directives_skip")  # a line each time they are given
OF_SCHEDULER = ("host", "port")
SHARED = "shared_temp_directory"


@contextlib.contextmanager
def submitted(running: Running, loop: Any) -> Iterator[Any]:
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
            cluster = kind(loop=loop, security=security, **settings(running))
        except (ValueError, TypeError) as error:
            told = " ".join(str(error).split(". Very likely")[0].split())
            raise ValueError(
                f"executor {running.executor}: --job needs at least cores=… and memory=…, such as --job cores=8 memory=32GB "
                f"walltime=04:00:00, and takes what dask-jobqueue's {kind.__name__} takes ({told})"
            ) from error
        with cluster:
            submit(cluster, running)
            log.info("executor: %d jobs submitted to %s; the work begins when they do", wanted(running), running.executor)
            yield cluster


@contextlib.contextmanager
def certificates(running: Running) -> Iterator[Any]:
    """What all who connect to the scheduler must have, for this run alone: the scheduler has to listen where nodes reach it.

    The files are in a folder that nodes see: dask-jobqueue's shared_temp_directory, or the working directory.
    """
    security = importlib.import_module("dask.distributed").Security
    made = security.temporary()
    given = dict(pair.split("=", 1) for pair in running.job)
    shared = (
        given.get(SHARED) or dask.config.get(f"jobqueue.{running.executor}.{SHARED.replace('_', '-')}", None) or os.getcwd()
    )
    with tempfile.TemporaryDirectory(prefix=".excl-tls-", dir=os.path.expandvars(os.path.expanduser(shared))) as folder:
        paths = {}
        for name, text in (("ca", made.tls_ca_file), ("cert", made.tls_worker_cert), ("key", made.tls_worker_key)):
            paths[name] = os.path.join(folder, name)
            with open(paths[name], "w", encoding="ascii", opener=functools.partial(os.open, mode=0o600)) as file:
                file.write(text)
        of_roles = {
            f"tls_{role}_{name}": paths[name] for role in ("scheduler", "worker", "client") for name in ("cert", "key")
        }
        yield security(tls_ca_file=paths["ca"], require_encryption=True, **of_roles)


def wanted(running: Running) -> int:
    """How many jobs there are to be."""
    return running.workers or 1


def submit(cluster: Any, running: Running) -> None:
    """Submit as many jobs as are missing; OSError if that fails."""

    async def missing() -> None:
        for name, job in list(cluster.workers.items()):
            if job.job_id is None:  # it was not accepted
                del cluster.workers[name]
        await cluster

    while len(cluster.worker_spec) < wanted(running):
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        cluster.sync(missing)
    except (RuntimeError, ValueError) as error:  # of dask-jobqueue, with the output of the program over many lines
        for job in cluster.workers.values():
            job.status = job.status if job.job_id else type(job.status).failed
        raise OSError(f"executor {running.executor}: a job was not accepted: {' '.join(str(error).split())}") from error


def mend(cluster: Any, running: Running) -> None:
    """Submit jobs in place of those that are gone; a batch system that refuses them now is asked again later."""
    try:
        submit(cluster, running)
    except OSError as error:
        log.warning("%s", error)


def settings(running: Running) -> dict[str, Any]:
    """What dask-jobqueue is told: what was given, over what its own configuration says.

    One worker a job, with one thread: it takes one shard at a time and uses all the job's cores for that.
    """
    here = dask.config.get(f"jobqueue.{running.executor}", {})
    given: dict[str, Any] = {}
    extra = list(here.get("worker-extra-args") or [])
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
    if given.get("processes", 1) != 1:
        raise ValueError("job: processes: a job is one worker here; --workers says how many jobs there are")
    extra += ["--nthreads", "1", "--no-dashboard"]
    if running.resources:
        extra += ["--resources", shlex.quote(",".join(running.resources))]
    return {
        **given,
        "processes": 1,
        "worker_extra_args": extra,
        "scheduler_options": scheduler,
    }
