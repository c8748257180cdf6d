"""The settings that `decode` and `extract` share: where a stage's videos are processed, and by whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import tyro
from pydantic.dataclasses import dataclass

from excl.pipeline.artifacts.shard_range import ShardRange
from excl.pipeline.config import STRICT, NonNegativeInt, SaidInText

INLINE, LOCAL = "inline", "local"
JOBS = ("slurm", "pbs", "sge", "lsf", "htcondor", "oar", "moab")
SCHEDULERS = ("tcp", "tls")
DASHBOARD = "127.0.0.1:0"


@dataclass(frozen=True, config=STRICT)
class ExecutorSettings:
    """The settings for where and by whom the work is done. Results depend on none of them."""

    executor: str = INLINE
    """Executor that does the work: inline, this process; local, a Dask cluster on this machine, a worker for each GPU or
    some cores; tcp://HOST:PORT or tls://HOST:PORT, the workers of a Dask scheduler that runs already; slurm, pbs, sge, lsf,
    htcondor, oar or moab, workers that are submitted as jobs (docs/workflows.md)."""
    workers: NonNegativeInt = 0
    """Workers of local, or jobs to submit. 0: one for each GPU, or one for every 4 cores; of jobs, one."""
    job: SaidInText[tuple[str, ...]] = ()
    """The resources of a job, as NAME=VALUE of dask-jobqueue: cores=8 (which is also how many threads its worker has)
    memory=32GB walltime=04:00:00 queue=gpu job_extra_directives=--gres=gpu:1 (again for each further line), host=ADDRESS or
    interface=NAME where nodes reach this machine. Anything not given comes from dask's own configuration (jobqueue.yaml)."""
    resources: SaidInText[tuple[str, ...]] = ()
    """Resources that a worker must have been started with to get work, as NAME=NUMBER, such as GPU=1 (`dask worker
    --resources GPU=1`); each shard in work takes this number of them. The workers of jobs are started with them."""
    shard_range: str | None = None
    """Do just the shards of one share of several, i/n with i from 0 to n - 1: for job arrays, each job with its own i on the
    same folder. No scheduler is needed."""
    tls_ca: Path | None = None
    """Certificate of the authority that signed the others, for tls://."""
    tls_cert: Path | None = None
    """Certificate of this process."""
    tls_key: Path | None = None
    """Key of this process."""
    dashboard: str = DASHBOARD
    """Where the dashboard of a cluster that is started here listens; by default on this machine alone, at any free port."""

    def __post_init__(self) -> None:
        scheme = urlsplit(self.executor).scheme
        is_scheduler, is_started_here = scheme in SCHEDULERS, self.executor in (LOCAL, *JOBS)
        if self.executor != INLINE and not is_started_here and not is_scheduler:
            raise ValueError(
                f"executor: {self.executor!r}; expected inline, local, tcp://HOST:PORT, tls://HOST:PORT, or one of "
                f"{', '.join(JOBS)}"
            )
        if is_scheduler:
            self._check_address()
        if self.shard_range is not None:
            self._check_share(self.shard_range)
        tls = (self.tls_ca, self.tls_cert, self.tls_key)
        for name, is_set, fits, executors in (
            ("workers", self.workers, is_started_here, "local, slurm, …"),
            ("job", self.job, self.executor in JOBS, ", ".join(JOBS)),
            ("resources", self.resources, is_scheduler or self.executor in JOBS, "tcp://, tls:// or jobs"),
            ("dashboard", self.dashboard != DASHBOARD, is_started_here, "local or jobs, whose cluster is started here"),
            ("tls_ca, tls_cert and tls_key", any(tls), scheme == "tls", "tls://"),
        ):
            if is_set and not fits:
                raise ValueError(f"{name}: only with executor {executors}; the executor is {self.executor}")
        if scheme == "tls" and not all(tls):
            raise ValueError("executor: tls:// needs tls_ca, tls_cert and tls_key")
        for name, pairs in (("job", self.job), ("resources", self.resources)):
            for pair in pairs:
                if "=" not in pair.strip("="):
                    raise ValueError(f"{name}: {pair!r}; expected NAME=VALUE")
        self.required_resources()

    def _check_address(self) -> None:
        address = urlsplit(self.executor)
        try:
            port = address.port
        except ValueError:
            port = None
        if not address.hostname or not port:
            raise ValueError(
                f"executor: {self.executor!r}; expected {address.scheme}://HOST:PORT, where a Dask scheduler listens"
            )

    def _check_share(self, text: str) -> None:
        try:
            ShardRange.parse(text)
        except ValueError as error:
            raise ValueError(f"shard_range: {error}") from None
        if self.executor != INLINE:
            raise ValueError("shard_range: is for job arrays, each process of which works inline; leave executor out")

    @property
    def share(self) -> ShardRange | None:
        """The share of the shards to do; None for all."""
        return None if self.shard_range is None else ShardRange.parse(self.shard_range)

    def required_resources(self) -> dict[str, float]:
        """Return the resources that a shard takes of a worker; ValueError for one that is not a positive number."""
        resources = {}
        for pair in self.resources:
            name, _, number = pair.partition("=")
            try:
                resources[name] = float(number)
            except ValueError:
                resources[name] = 0.0
            if not resources[name] > 0:
                raise ValueError(f"resources: {pair!r}; expected NAME=NUMBER, such as GPU=1")
        return resources


S = TypeVar("S")
_Override = Annotated[S | None, tyro.conf.arg(help_behavior_hint="(default: the recipe's)")]


@dataclass(frozen=True, config=STRICT)
class ExecutorOverrides:
    """The settings of ExecutorSettings in place of a recipe's; `excl extract --help` has more of each."""

    executor: _Override[str] = None
    """Executor that does the work: inline, this process; local, a Dask cluster on this machine; tcp://HOST:PORT or
    tls://HOST:PORT, the workers of a scheduler; slurm, pbs, sge, lsf, htcondor, oar or moab, jobs."""
    workers: _Override[NonNegativeInt] = None
    """Workers of local, or jobs to submit."""
    job: _Override[tuple[str, ...]] = None
    """The resources of a job, as NAME=VALUE of dask-jobqueue."""
    resources: _Override[tuple[str, ...]] = None
    """Resources that a worker must have been started with to get work, as NAME=NUMBER, such as GPU=1."""
    shard_range: _Override[str] = None
    """Do just the shards of one share of several, i/n with i from 0 to n - 1, for job arrays."""
    tls_ca: _Override[Path] = None
    """Certificate of the authority that signed the others, for tls://."""
    tls_cert: _Override[Path] = None
    """Certificate of this process."""
    tls_key: _Override[Path] = None
    """Key of this process."""
    dashboard: _Override[str] = None
    """Where the dashboard of a cluster that is started here listens."""


def apply_overrides(table: Any, overrides: ExecutorOverrides) -> Any:
    """Return a recipe table's `running` with the overrides in place; another kind of executor keeps none of it."""
    values = {name: value for name, value in dataclasses.asdict(overrides).items() if value is not None}
    if not values or not isinstance(table, Mapping):
        return table
    recipe_executor = table.get("executor", INLINE)
    executor = values.get("executor", INLINE if "shard_range" in values else recipe_executor)
    return {**(table if _kind(executor) == _kind(recipe_executor) else {}), "executor": executor, **values}


def _kind(executor: Any) -> str:
    return urlsplit(str(executor)).scheme or str(executor)
