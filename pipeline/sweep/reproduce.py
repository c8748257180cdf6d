"""The paper's Table 1: train its twelve variants several times on training stores, evaluate each, and write the table.

    DATASET-FINGERPRINT/VARIANT/seed-N/run         what `excl train` writes
    DATASET-FINGERPRINT/VARIANT/seed-N/evaluation  what `excl evaluate` writes
    table.md, table.csv, table.json                written anew after every evaluation (table.py)

Nothing is done twice: run again, a sweep that was killed resumes, in the middle of a training if need be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.models.excl import VARIANTS, ExCLConfig, variant_config
from excl.models.excl.config import Variant
from excl.pipeline import evaluate, train
from excl.pipeline.artifacts.atomic_files import write_text
from excl.pipeline.artifacts.header import RecipeMismatchError
from excl.pipeline.artifacts.locks import locked
from excl.pipeline.config import STRICT, PositiveInt, WithoutPrefix, identity
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.sweep.jobs import Job, require_same_settings, run_jobs
from excl.pipeline.sweep.table import EVALUATION, compare_variants, narrow, read_results, render
from excl.pipeline.training.checkpoint_files import exists
from excl.pipeline.training.checkpointer import LAST
from excl.pipeline.training.distributed import training_devices

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "reproduce", train.CODE_VERSION
MARKDOWN = "table.md"
OF_VARIANTS = ("variant", "loss", "video_encoder", "predictor", "text_encoder")


@dataclass(frozen=True, config=STRICT)
class SharedTrainConfig(train.TrainConfig):
    """The settings that all trainings share: those of `excl train`."""

    store: Annotated[tuple[Path, ...], tyro.conf.Fixed, tyro.conf.Suppress, tyro.conf.arg(name="store-of-run")] = ()
    """Given by the sweep."""
    out: Annotated[Path, tyro.conf.Fixed, tyro.conf.Suppress, tyro.conf.arg(name="out-of-run")] = Path()
    """Given by the sweep."""
    epochs: PositiveInt = 300
    """At most so many passes over the training split. A training that takes them all is named in the table unless it has
    converged. The paper has 30; where epochs are short, regression takes longer."""
    patience: PositiveInt = 40
    """A training has converged, and stops, when so many epochs brought no better R@1 at IoU 0.5 on the validation split
    (mIoU decides between equals)."""
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
class ReproduceConfig:
    """Train the paper's twelve variants, evaluate them, and put the figures next to the paper's Table 1."""

    stores: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="STORE …")]
    """One or more training stores, each a table of its own."""
    out: Path
    """The folder to write. Run again with the same settings, it resumes."""
    variants: tuple[Variant | Literal["all"], ...] = ("all",)
    """The variants to train, such as clf-2-b, or all twelve."""
    seeds: PositiveInt = 3
    """Number of trainings of each variant: with the seeds 0, 1, 2, …"""
    split: Literal["val", "test"] = "test"
    """The split to evaluate on."""
    parallel: PositiveInt = 1
    """Trainings side by side, each in a process of its own with its share of the cores; its messages go to log.txt."""
    training: WithoutPrefix[SharedTrainConfig] = field(default_factory=SharedTrainConfig)
    """The settings of each training."""

    def __post_init__(self) -> None:
        if not self.stores or not self.variants:
            raise ValueError("stores and variants: at least one of each is needed")
        if len({path.resolve() for path in self.stores}) < len(self.stores):
            raise ValueError("stores: one of them is given twice")
        if "all" in self.variants and len(self.variants) > 1:
            raise ValueError("variants: either all or names")


@plain_dataclass(frozen=True)
class Reproduction:
    """The folder of a sweep and the errors of its trainings, by name."""

    folder: Path
    errors: dict[str, str]


def run(config: ReproduceConfig) -> Reproduction:
    """Train and evaluate what is not done yet; BusyError if another process works on the same table.

    Raises ValueError if the folder has results of other settings, or if nothing could be trained.
    """
    jobs = _all_jobs(config)
    config.out.mkdir(parents=True, exist_ok=True)
    errors: dict[str, str] = {}
    with locked(config.out):
        require_same_settings(jobs)
        _run_and_tabulate(config, jobs, errors)
    if len(errors) == len(jobs):
        raise ValueError(f"nothing could be trained; {jobs[0].name}: {errors[jobs[0].name]}")
    return Reproduction(config.out, errors)


def made_by(config: ReproduceConfig) -> dict[str, Any]:
    """Return what determines the results of a sweep, whatever its variants and seeds are."""
    return {
        "training": identity(config.training),
        "devices_sharing_a_batch": len(training_devices(config.training.device)),
        "stores": sorted(TrainingStore(path).manifest.fingerprint() for path in config.stores),
        "split": config.split,
        "code_versions": {stage.STAGE: stage.CODE_VERSION for stage in (train, evaluate)},
    }


def has_same_settings(config: ReproduceConfig) -> bool:
    """Return whether the folder has some of these trainings, all of them of these settings."""
    jobs = _all_jobs(config)
    try:
        require_same_settings(jobs)
    except RecipeMismatchError:
        return False
    return any(exists(job.training.out, LAST) for job in jobs)


def num_finished(config: ReproduceConfig) -> int:
    """Return how many trainings there are, if the table is finished with just these settings; 0 if not."""
    jobs = _all_jobs(config)
    try:
        require_same_settings(jobs)
    except RecipeMismatchError:
        return 0
    num_results = sum(map(len, read_results([job.evaluation.folder for job in jobs]).values()))
    return len(jobs) if num_results == len(jobs) and (config.out / MARKDOWN).is_file() else 0


def _run_and_tabulate(config: ReproduceConfig, jobs: Sequence[Job], errors: dict[str, str]) -> None:
    """Run the jobs, and write the table anew after each; `errors` takes those of jobs that failed."""
    with contextlib.closing(run_jobs(jobs, config.parallel)) as results:
        for number, (job, error) in enumerate(results, start=1):
            if error is not None:
                errors[job.name] = error
                log.error("[%d/%d] %s: %s", number, len(jobs), job.name, error)
                continue
            _write_tables(config, jobs)
            log.info("[%d/%d] %s is done", number, len(jobs), job.name)


def _write_tables(config: ReproduceConfig, jobs: Sequence[Job]) -> None:
    results = read_results([job.evaluation.folder for job in jobs])
    stores = {_folder_name(store): store for store in map(TrainingStore, config.stores)}
    for suffix, text in render(results, compare_variants(results, stores)).items():
        write_text(config.out / f"table.{suffix}", text)


def _folder_name(store: TrainingStore) -> str:
    return f"{store.about_queries['dataset']}-{store.manifest.fingerprint()[:8]}"


def _all_jobs(config: ReproduceConfig) -> list[Job]:
    jobs = [job for path in config.stores for job in _jobs(config, TrainingStore(path))]
    return sorted(jobs, key=lambda job: job.training.seed)  # a table of all variants early


def _jobs(config: ReproduceConfig, store: TrainingStore) -> list[Job]:
    dataset = store.about_queries["dataset"]
    variants = [variant for variant in VARIANTS if variant in config.variants or "all" in config.variants]
    settings = {field.name: getattr(config.training, field.name) for field in dataclasses.fields(train.TrainConfig)}
    jobs = []
    for seed in range(config.seeds):
        for variant in variants:
            folder = config.out / _folder_name(store) / variant / f"seed-{seed}"
            model = variant_config(variant, sizes=config.training.model)
            changes = {"store": (store.path,), "out": folder / "run", "seed": seed, "model": model}
            training = train.TrainConfig(**{**settings, **changes})
            evaluation = evaluate.EvaluateConfig(
                run=folder / "run",
                store=store.path,
                out=folder / EVALUATION,
                split=config.split,
                device=training.device.split(",")[0].strip(),  # one is enough for it, where several share the training
            )
            jobs.append(Job(f"{dataset}, {variant}, seed {seed}", training, evaluation))
    return jobs


def show(reproduction: Reproduction) -> str:
    """Return the table for people, as narrow as a terminal, and the path of the whole one."""
    failed = [f"FAILED: {name}: {error}" for name, error in reproduction.errors.items()]
    path = reproduction.folder / MARKDOWN
    table = narrow(path.with_suffix(".json").read_text(encoding="utf-8"))
    return "\n".join([*table, "", *failed, f"table: {path.resolve()}, and as .csv and .json"])


def num_failed(reproduction: Reproduction) -> int:
    """Return how many trainings failed."""
    return len(reproduction.errors)
