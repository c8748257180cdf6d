"""The paper's Table 1: train its twelve variants several times on training stores, evaluate each, and write the table.

    DATASET-FINGERPRINT/VARIANT/seed-N/run         what `excl train` writes
    DATASET-FINGERPRINT/VARIANT/seed-N/evaluation  what `excl evaluate` writes
    table.md, table.csv, table.json                written anew after every evaluation (table.py)
    protocol.json                                  all that decided their figures (protocol.py)

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
from excl.pipeline.artifacts.atomic_files import sha256_file, write_json, write_text
from excl.pipeline.artifacts.header import RecipeMismatchError, diff
from excl.pipeline.artifacts.locks import locked
from excl.pipeline.config import STRICT, PositiveInt, WithoutPrefix, identity, parse_section
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.sweep.jobs import Job, require_same_settings, run_jobs
from excl.pipeline.sweep.protocol import FORMAT, MIXED, PROTOCOL, read_protocol, require_same
from excl.pipeline.sweep.provenance import hardware, store_facts, stores_by_name, versions
from excl.pipeline.sweep.table import EVALUATION, compare_variants, narrow, read_results, render
from excl.pipeline.training.checkpoint_format import exists
from excl.pipeline.training.checkpointer import LAST
from excl.pipeline.training.distributed import training_devices
from excl.pipeline.training.validation import SELECT_BY

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "reproduce", train.CODE_VERSION
MARKDOWN = "table.md"
VARIANT_NAMES: list[Variant] = list(VARIANTS)
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

    out: Path
    """The folder to write. Run again with the same settings, it resumes."""
    stores: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="STORE …", help_behavior_hint="")] = ()
    """One or more training stores, each with its own table. With --protocol: their places now, if they have moved."""
    variants: tuple[Variant | Literal["all"], ...] = ("all",)
    """The variants to train, such as clf-2-b, or all twelve."""
    seeds: PositiveInt = 3
    """Number of trainings of each variant: with the seeds 0, 1, 2, …"""
    split: Literal["val", "test"] = "test"
    """The split to evaluate on."""
    parallel: PositiveInt = 1
    """Trainings side by side, each in a process of its own with its share of the cores; its messages go to log.txt."""
    protocol: Path | None = None
    """Repeat the table of this protocol.json: variants, seeds, split and training are those of the protocol, and whatever
    else differs from it is named and refused."""
    accept: tuple[Literal["versions", "decoders", "hardware"], ...] = ()
    """Kinds of differences from the protocol to accept. The figures need not be the same to the digit then."""
    training: WithoutPrefix[SharedTrainConfig] = field(default_factory=SharedTrainConfig)
    """The settings of each training."""

    def __post_init__(self) -> None:
        if self.accept and self.protocol is None:
            raise ValueError("accept: needs --protocol, the protocol to differ from")
        if not (self.stores or self.protocol) or not self.variants:
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
    config = with_protocol(config)
    jobs = _all_jobs(config)
    protocol = make_protocol(config)
    if config.protocol is not None:
        require_same(config.protocol, protocol, config.accept)
    config.out.mkdir(parents=True, exist_ok=True)
    errors: dict[str, str] = {}
    with locked(config.out):
        require_same_settings(jobs)
        _run_and_tabulate(config, jobs, errors, _with_earlier(config, protocol))
    if len(errors) == len(jobs):
        raise ValueError(f"nothing could be trained; {jobs[0].name}: {errors[jobs[0].name]}")
    if config.protocol is not None and not errors:
        _require_same_table(config)
    return Reproduction(config.out, errors)


def made_by(config: ReproduceConfig) -> dict[str, Any]:
    """Return what determines the results of a sweep, whatever its variants and seeds are."""
    config = with_protocol(config)
    return {
        "training": identity(config.training),
        "devices_sharing_a_batch": len(training_devices(config.training.device)),
        "stores": sorted(TrainingStore(path).manifest.fingerprint() for path in config.stores),
        "split": config.split,
        "code_versions": {stage.STAGE: stage.CODE_VERSION for stage in (train, evaluate)},
    }


def has_same_settings(config: ReproduceConfig) -> bool:
    """Return whether the folder has some of these trainings, all of them of these settings."""
    jobs = _all_jobs(with_protocol(config))
    try:
        require_same_settings(jobs)
    except RecipeMismatchError:
        return False
    return any(exists(job.training.out, LAST) for job in jobs)


def num_finished(config: ReproduceConfig) -> int:
    """Return how many trainings there are, if the table is finished with just these settings; 0 if not."""
    jobs = _all_jobs(with_protocol(config))
    try:
        require_same_settings(jobs)
    except RecipeMismatchError:
        return 0
    num_results = sum(map(len, read_results([job.evaluation.folder for job in jobs]).values()))
    return len(jobs) if num_results == len(jobs) and (config.out / MARKDOWN).is_file() else 0


def with_protocol(config: ReproduceConfig) -> ReproduceConfig:
    """Return the configuration with the settings of its protocol, if any; ValueError for settings that contradict it."""
    if config.protocol is None:
        return config
    protocol = read_protocol(config.protocol)
    settings = {**protocol["sweep"], "training": protocol["training"]}
    settings.pop("selection")
    request = {**{name: getattr(config, name) for name in ("seeds", "split")}, "training": identity(config.training)}
    request["variants"] = VARIANT_NAMES if "all" in config.variants else list(config.variants)
    default = {"seeds": 3, "split": "test", "variants": VARIANT_NAMES, "training": identity(SharedTrainConfig())}
    contradicting = [
        f"{key}: {asked!r} asked for, {value!r} in the protocol"
        for key, (asked, value) in diff(request, settings).items()
        if key in diff(request, default)
    ]
    if contradicting:
        lines = "\n  ".join(contradicting)
        raise ValueError(
            f"{config.protocol}: settings of the command differ from those of the protocol; leave out\n  {lines}"
        )
    training = parse_section(SharedTrainConfig, settings.pop("training"), where=str(config.protocol))
    run_only_names = {each.name for each in dataclasses.fields(training)} - identity(training).keys()
    run_only = {name: getattr(config.training, name) for name in run_only_names}
    places = config.stores or tuple(map(Path, protocol["places"].values()))
    shared = dataclasses.replace(training, **run_only)
    settings["variants"] = tuple(settings["variants"])
    return dataclasses.replace(config, stores=places, training=shared, **settings)


def make_protocol(config: ReproduceConfig) -> dict[str, Any]:
    """Return all that decides the figures of a sweep, but for the table itself."""
    stores = stores_by_name([TrainingStore(path) for path in config.stores])
    split = "test" if config.training.select_on_test else "val"
    return {
        "format": FORMAT,
        "stores": {name: store_facts(store) for name, store in stores.items()},
        "sweep": {
            "variants": VARIANT_NAMES if "all" in config.variants else list(config.variants),
            "seeds": config.seeds,
            "split": config.split,
            "selection": f"best epoch by {', then '.join(SELECT_BY)} on {split}",
        },
        "training": identity(config.training),
        "versions": versions({stage.STAGE: stage.CODE_VERSION for stage in (train, evaluate)}),
        "hardware": hardware(config.training.device, parallel=config.parallel),
        MIXED: [],
        "places": {name: str(store.path.resolve()) for name, store in stores.items()},
    }


def _with_earlier(config: ReproduceConfig, protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the protocol of a folder that has trainings already, which other versions or hardware may have made."""
    if not (config.out / PROTOCOL).is_file():
        return protocol
    earlier = read_protocol(config.out)
    if num_finished(config):
        return {**protocol, **{part: earlier[part] for part in ("versions", "hardware", MIXED)}}
    others = {part: earlier[part] for part in ("versions", "hardware") if earlier[part] != protocol[part]}
    return {**protocol, MIXED: [*earlier[MIXED], *([others] if others else [])]}


def _require_same_table(config: ReproduceConfig) -> None:
    """Raise ValueError if the finished table is not that of the protocol, though nothing that it states differs."""
    assert config.protocol is not None
    expected, table = (read_protocol(path)["table"] for path in (config.protocol, config.out))
    if table == expected:
        log.info("reproduce: the table is that of %s, to the digit", config.protocol)
    elif config.accept:
        differing = "reproduce: the table differs from the one in %s; differences in %s were accepted"
        log.warning(differing, config.protocol, config.accept)
    else:
        raise ValueError(
            f"{config.out}: repeated {config.protocol}, and the table differs from the one in it; either that file was "
            "written before all trainings had ended, or the figures depend on something that no protocol states"
        )


def _run_and_tabulate(
    config: ReproduceConfig, jobs: Sequence[Job], errors: dict[str, str], protocol: dict[str, Any]
) -> None:
    """Run the jobs, and write the table anew after each; `errors` takes those of jobs that failed."""
    with contextlib.closing(run_jobs(jobs, config.parallel)) as results:
        for number, (job, error) in enumerate(results, start=1):
            if error is not None:
                errors[job.name] = error
                log.error("[%d/%d] %s: %s", number, len(jobs), job.name, error)
                continue
            _write_tables(config, jobs, protocol)
            log.info("[%d/%d] %s is done", number, len(jobs), job.name)


def _write_tables(config: ReproduceConfig, jobs: Sequence[Job], protocol: dict[str, Any]) -> None:
    results = read_results([job.evaluation.folder for job in jobs])
    stores = {_folder_name(store): store for store in map(TrainingStore, config.stores)}
    for suffix, text in render(results, compare_variants(results, stores)).items():
        write_text(config.out / f"table.{suffix}", text)
    table = {"sha256": sha256_file(config.out / "table.csv")}
    write_json(config.out / PROTOCOL, {**protocol, "table": table})


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
