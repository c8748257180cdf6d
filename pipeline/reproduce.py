"""The paper's Table 1: trains its twelve variants several times on training stores, evaluates each, leaves the table.

    DATASET-FINGERPRINT/VARIANT/seed-N/run         what `excl train` writes
    DATASET-FINGERPRINT/VARIANT/seed-N/evaluation  what `excl evaluate` writes
    table.md, table.csv, table.json                written anew after every evaluation (reproduce_table.py)

What is done is not done twice; run again, a sweep that was killed goes on, in the middle of a training if need be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from pydantic.dataclasses import dataclass

from excl.models.excl import VARIANTS, ExCLConfig, variant_config
from excl.models.excl.config import Variant
from excl.pipeline import evaluate, train
from excl.pipeline.config import STRICT, PositiveInt, WithoutPrefix
from excl.pipeline.manifest import BusyError, RecipeMismatchError, write_text
from excl.pipeline.reading import num_cores
from excl.pipeline.reproduce_table import MADE, Results, read_results, render
from excl.pipeline.store import TrainingStore

log = logging.getLogger(__name__)

MARKDOWN = "table.md"
PER_RUN = ("store", "out", "seed")
OF_VARIANTS = ("variant", "loss", "video_encoder", "predictor", "text_encoder")


@dataclass(frozen=True, config=STRICT)
class Training(train.Config):
    """The settings that all trainings share: those of `excl train`."""

    store: Annotated[tuple[Path, ...], tyro.conf.Fixed, tyro.conf.Suppress, tyro.conf.arg(name="store-of-run")] = ()
    """Given by the sweep."""
    out: Annotated[Path, tyro.conf.Fixed, tyro.conf.Suppress, tyro.conf.arg(name="out-of-run")] = Path()
    """Given by the sweep."""
    seed: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress, tyro.conf.arg(name="seed-of-run")] = 0
    """Given by the sweep."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.store, self.out, self.seed) != ((), Path(), 0):
            raise ValueError("training: store, out and seed are those of the sweep: give stores, out and seeds")
        changed = [name for name in OF_VARIANTS if getattr(self.model, name) != getattr(ExCLConfig(), name)]
        if changed:
            raise ValueError(f"model.{changed[0]}: the sweep goes through the variants itself; choose them by variants")


@dataclass(frozen=True, config=STRICT)
class Config:
    """Train the paper's twelve variants, evaluate them, and put the figures beside the paper's Table 1."""

    stores: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="STORE …")]
    """One or more training stores, each a table of its own."""
    out: Path
    """The folder to write. Run again with the same settings, it goes on."""
    variants: tuple[Variant | Literal["all"], ...] = ("all",)
    """The variants to train, such as clf-2-b, or all twelve."""
    seeds: PositiveInt = 3
    """How often each is trained: with the seeds 0, 1, 2, …"""
    split: Literal["val", "test"] = "test"
    """The split to evaluate on."""
    parallel: PositiveInt = 1
    """Trainings side by side, each in a process of its own with its share of the cores; its messages go to log.txt."""
    training: WithoutPrefix[Training] = field(default_factory=Training)
    """How each is trained."""

    def __post_init__(self) -> None:
        if not self.stores or not self.variants:
            raise ValueError("stores and variants: at least one of each is needed")
        if len({path.resolve() for path in self.stores}) < len(self.stores):
            raise ValueError("stores: one of them is given twice")
        if "all" in self.variants and len(self.variants) > 1:
            raise ValueError("variants: either all or names")


@plain_dataclass(frozen=True)
class Job:
    """One training and its evaluation, in a folder of its own."""

    name: str
    training: train.Config
    evaluation: evaluate.Config

    @property
    def folder(self) -> Path:
        """Where run, evaluation and messages are."""
        return self.training.out.parent


@plain_dataclass(frozen=True)
class Reproduction:
    """The folder of a sweep and the errors of its trainings, by name."""

    folder: Path
    errors: dict[str, str]


def run(config: Config) -> Reproduction:
    """Do what is not done yet. ValueError where settings are not those of the folder, or where nothing could be trained."""
    jobs = [job for path in config.stores for job in _jobs(config, TrainingStore(path))]
    jobs.sort(key=lambda job: job.training.seed)  # a table of all variants early
    config.out.mkdir(parents=True, exist_ok=True)
    errors: dict[str, str] = {}
    for number, (job, error) in enumerate(_done(jobs, config.parallel), start=1):
        if error is not None:
            errors[job.name] = error
            log.error("[%d/%d] %s: %s", number, len(jobs), job.name, error)
            continue
        _write(config.out, read_results([one.evaluation.out for one in jobs]))
        log.info("[%d/%d] %s is done", number, len(jobs), job.name)
    if len(errors) == len(jobs):
        raise ValueError(f"nothing could be trained; {jobs[0].name}: {errors[jobs[0].name]}")
    return Reproduction(config.out, errors)


def _jobs(config: Config, store: TrainingStore) -> list[Job]:
    dataset = store.about_queries["dataset"]
    name = f"{dataset}-{store.manifest.fingerprint()[:8]}"
    variants = [variant for variant in VARIANTS if variant in config.variants or "all" in config.variants]
    shared = {one.name: getattr(config.training, one.name) for one in dataclasses.fields(train.Config)}
    jobs = []
    for seed in range(config.seeds):
        for variant in variants:
            folder = config.out / name / variant / f"seed-{seed}"
            model = variant_config(variant, like=config.training.model)
            own = {"store": (store.path,), "out": folder / "run", "seed": seed, "model": model}
            training = train.Config(**{**shared, **own})
            evaluation = evaluate.Config(
                run=folder / "run", store=store.path, out=folder / MADE, split=config.split, device=training.device
            )
            jobs.append(Job(f"{dataset}, {variant}, seed {seed}", training, evaluation))
    return jobs


def _done(jobs: list[Job], parallel: int) -> Iterator[tuple[Job, str | None]]:
    """The jobs as they are done, each with its error, if any."""
    if parallel == 1:
        for job in jobs:
            yield job, _do(job)
        return
    context = multiprocessing.get_context("spawn")  # a process with CUDA cannot be forked
    threads = max(1, num_cores() // parallel)
    pool = ProcessPoolExecutor(parallel, mp_context=context, initializer=_begin_process, initargs=(threads,))
    try:
        waiting = {pool.submit(_do_in_process, job): job for job in jobs}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _do(job: Job) -> str | None:
    """Train and evaluate unless it is done. Returns what went wrong with this one; raises what would with every one."""
    try:
        train.run(job.training)
        evaluate.run(job.evaluation)
    except (RecipeMismatchError, BusyError):
        raise
    except (ValueError, ArithmeticError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _begin_process(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A training whose sweep was killed would hold its folder, and the next sweep would find it busy."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do_in_process(job: Job) -> str | None:
    """`_do` with its messages and its progress in log.txt of the job's folder."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "log.txt").open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=file, force=True)
        return _do(job)


def _write(folder: Path, results: Results) -> None:
    for suffix, text in render(results).items():
        write_text(folder / f"table.{suffix}", text)


def show(done: Reproduction) -> str:
    """The table for people, and where it is."""
    failed = [f"FAILED: {name}: {error}" for name, error in done.errors.items()]
    table = (done.folder / MARKDOWN).read_text(encoding="utf-8").rstrip()
    return "\n".join([table, "", *failed, f"table: {(done.folder / MARKDOWN).resolve()}, and as .csv and .json"])


def num_failed(done: Reproduction) -> int:
    """How many trainings failed."""
    return len(done.errors)
