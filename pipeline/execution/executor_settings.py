"""Where a stage's videos are worked on, and by whom: the settings that `decode` and `extract` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints
from urllib.parse import urlsplit

import tyro
from pydantic.dataclasses import dataclass

from excl.pipeline.artifacts.shard_range import ShardRange
from excl.pipeline.config import STRICT, NonNegativeInt

INLINE, LOCAL = "inline", "local"
JOBS = ("slurm", "pbs", "sge", "lsf", "htcondor", "oar", "moab")
SCHEDULERS = ("tcp", "tls")
DASHBOARD = "127.0.0.1:0"


@dataclass(frozen=True, config=STRICT)
class ExecutorSettings:
    """Where and by whom the work is done. Results depend on none of it."""

    executor: str = INLINE
    """Who works: inline, this process; local, a Dask cluster on this machine, a worker for each GPU or some cores;
    tcp://HOST:PORT or tls://HOST:PORT, the workers of a Dask scheduler that runs already; slurm, pbs, sge, lsf, htcondor,
    oar or moab, workers that are submitted as jobs (docs/workflows.md)."""
    workers: NonNegativeInt = 0
    """Workers of local, or jobs to submit. 0: one for each GPU, or one for every 4 cores; of jobs, one."""
    job: tuple[str, ...] = ()
    """What a job asks for, as NAME=VALUE of dask-jobqueue: cores=8 (which is also how many threads its worker has)
    memory=32GB walltime=04:00:00 queue=gpu
    job_extra_directives=--gres=gpu:1 (again for each further line), host=ADDRESS or interface=NAME where nodes reach this
    machine. What is not given is what dask's own configuration says (jobqueue.yaml)."""
    resources: tuple[str, ...] = ()
    """What a worker must have been started with to get work, as NAME=NUMBER, such as GPU=1 (`dask worker --resources
    GPU=1`); a number of them for each shard that is worked on. The workers of jobs are started with it."""
    shard_range: str | None = None
    """Do just the shards of one share of several, i/n with i from 0 to n - 1: for job arrays, each job with its own i on the
    same folder. No scheduler is needed."""
    tls_ca: Path | None = None
    """Certificate of the authority that signed the others, for tls://."""
    tls_cert: Path | None = None
    """Certificate of this process."""
    tls_key: Path | None = None
    """Its key."""
    dashboard: str = DASHBOARD
    """Where the dashboard of a cluster that is started here listens; by default on this machine alone, at any free port."""

    def __post_init__(self) -> None:
        scheme = urlsplit(self.executor).scheme
        if self.executor not in (INLINE, LOCAL, *JOBS) and scheme not in SCHEDULERS:
            raise ValueError(
                f"executor: {self.executor!r}; wanted inline, local, tcp://HOST:PORT, tls://HOST:PORT, or one of "
                f"{', '.join(JOBS)}"
            )
        if scheme in SCHEDULERS:
            self._check_address(self.executor)
        if self.shard_range is not None:
            self._check_share(self.shard_range)
        self._require(self.workers, "workers", self.executor in (LOCAL, *JOBS), "executor local, slurm, …")
        self._require(self.job, "job", self.executor in JOBS, f"executor {', '.join(JOBS)}")
        fits = scheme in SCHEDULERS or self.executor in JOBS
        self._require(self.resources, "resources", fits, "executor tcp://, tls:// or jobs")
        ours = self.executor in (LOCAL, *JOBS)
        self._require(
            self.dashboard != DASHBOARD, "dashboard", ours, "executor local or jobs, whose cluster is started here"
        )
        keys = (self.tls_ca, self.tls_cert, self.tls_key)
        self._require(any(keys), "tls_ca, tls_cert and tls_key", scheme == "tls", "executor tls://")
        if scheme == "tls" and not all(keys):
            raise ValueError("executor: tls:// needs tls_ca, tls_cert and tls_key")
        for name, pairs in (("job", self.job), ("resources", self.resources)):
            for pair in pairs:
                if "=" not in pair.strip("="):
                    raise ValueError(f"{name}: {pair!r}; wanted NAME=VALUE")
        self.required_resources()

    def _check_address(self, text: str) -> None:
        address = urlsplit(text)
        try:
            port = address.port
        except ValueError:
            port = None
        if not address.hostname or not port:
            raise ValueError(f"executor: {text!r}; wanted {address.scheme}://HOST:PORT, where a Dask scheduler listens")

    def _check_share(self, text: str) -> None:
        try:
            ShardRange.parse(text)
        except ValueError as error:
            raise ValueError(f"shard_range: {error}") from None
        if self.executor != INLINE:
            raise ValueError("shard_range: is for job arrays, each process of which works inline; leave executor out")

    def _require(self, given: object, name: str, fits: bool, what: str) -> None:
        if given and not fits:
            raise ValueError(f"{name}: only with {what}; the executor is {self.executor}")

    @property
    def share(self) -> ShardRange | None:
        """The share of the shards to do; None for all."""
        return None if self.shard_range is None else ShardRange.parse(self.shard_range)

    def required_resources(self) -> dict[str, float]:
        """The resources that a shard takes of a worker; ValueError for one that is no positive number."""
        found = {}
        for pair in self.resources:
            name, _, number = pair.partition("=")
            try:
                found[name] = float(number)
            except ValueError:
                found[name] = 0.0
            if not found[name] > 0:
                raise ValueError(f"resources: {pair!r}; wanted NAME=NUMBER, such as GPU=1")
        return found


def _optional(kind: type[Any]) -> type[Any]:
    """The same settings, of which each may be left out (None), with the same help."""
    hints = get_type_hints(kind, include_extras=True)
    of_recipe = tyro.conf.arg(help_behavior_hint="(default: the recipe's)")
    names = [field.name for field in dataclasses.fields(kind)]
    content = {
        "__annotations__": {name: Annotated[hints[name] | None, of_recipe] for name in names},
        "__doc__": kind.__doc__,
        "__module__": __name__,
        "__post_init__": lambda _: None,
        **dict.fromkeys(names),
    }
    return dataclass(frozen=True, config=STRICT)(type(f"Given{kind.__name__}", (kind,), content))


if TYPE_CHECKING:
    Given = ExecutorSettings
else:
    Given = _optional(ExecutorSettings)  # what of it a command line says


def apply_overrides(table: Any, given: Given) -> Any:
    """The `running` of a recipe's table with what is given in its place; of another kind of executor nothing is kept."""
    named = {name: value for name, value in vars(given).items() if name in _NAMES and value is not None}
    if not named or not isinstance(table, Mapping):
        return table
    before = table.get("executor", INLINE)
    executor = named.get("executor", INLINE if "shard_range" in named else before)
    return {**(table if _kind(executor) == _kind(before) else {}), "executor": executor, **named}


_NAMES = {field.name for field in dataclasses.fields(ExecutorSettings)}


def _kind(executor: Any) -> str:
    return urlsplit(str(executor)).scheme or str(executor)
