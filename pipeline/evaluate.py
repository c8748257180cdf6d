"""What a trained run is worth on a split: reads a run and a training store, leaves predictions and metrics.

    predictions.jsonl  one query a line in Moment-DETR's format, the five best moments (not where --predictions has them)
    metrics.json       R@1 and R@5 at IoU 0.3, 0.5 and 0.7 and mIoU, with 95 % intervals of a bootstrap by video, of the
                       model and of three baselines, by group of queries; "strict" figures count IoU > in place of >=

All queries of the split count: those whose video has no features are misses. The figures over those that have are beside.
The baselines: the best fixed part of every video and a prior over times, both fitted on the training split, and the
model itself asked other videos' queries (query_blind.py has the rule).
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from excl.models.excl import variant_label
from excl.models.i3d.extractor import choose_device
from excl.pipeline import score_table, scoring
from excl.pipeline.config import STRICT, PositiveInt, identity
from excl.pipeline.examples import Example, load_examples
from excl.pipeline.manifest import Manifest, sha256_file, single, write_json
from excl.pipeline.predictions import TOP, match, read_predictions, require_own_qids, tell, write_predictions
from excl.pipeline.query_blind import RULE, ask_others
from excl.pipeline.store import Query, TrainingStore
from excl.pipeline.trained import TrainedRun, load_run, predict

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "evaluate", 6
METRICS, PREDICTIONS = "metrics.json", "predictions.jsonl"


@dataclass(frozen=True, config=STRICT)
class Config:
    """Evaluate a trained run on a split of a training store, beside three baselines."""

    run: Path
    """The run that `excl train` wrote."""
    store: Path
    """The training store to evaluate on, with the run's vocabulary and feature recipe."""
    out: Path
    """The folder to write: predictions.jsonl and metrics.json."""
    split: Literal["train", "val", "test"] = "test"
    """The split to evaluate on."""
    predictions: Path | None = None
    """Score the predictions in this file, JSON lines in Moment-DETR's format, in place of the run's own."""
    strict: bool = False
    """Show the figures that count only what is above a threshold, as some published code does. metrics.json has both."""
    batch_size: PositiveInt = 64
    """Queries at a time."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        choose_device(self.device)


@plain_dataclass(frozen=True)
class Evaluation:
    """The folder of an evaluation, and whether people want its strict figures."""

    folder: Path
    strict: bool


def run(config: Config) -> Evaluation:
    """Evaluate unless it is done."""
    folder = single(
        config.out,
        stage=STAGE,
        identity=made_by(config),
        code_version=CODE_VERSION,
        work=lambda manifest: _work(config, TrainingStore(config.store), manifest),
    )
    return Evaluation(folder, config.strict)


def made_by(config: Config) -> dict[str, Any]:
    """What determines the figures."""
    return {
        **identity(config, run_only=("run", "store", "out", "strict", "batch_size", "device")),
        "run": Manifest.read(config.run).fingerprint(),
        "store": TrainingStore(config.store).manifest.fingerprint(),
        "predictions": None if config.predictions is None else sha256_file(config.predictions),
    }


def _work(config: Config, store: TrainingStore, manifest: Manifest) -> dict[str, Any]:
    trained = load_run(config.run, device=config.device)
    _require_same_kind(trained, store)
    queries = store.queries(config.split)
    require_own_qids(queries)
    truth, asked = scoring.Truth.of(queries), _asked(trained, store, queries)
    blind, num_own = ask_others(asked) if asked else ([], 0)
    label, misfits, outputs = variant_label(trained.model.config), None, [METRICS]
    if config.predictions is None:
        windows = _predicted(trained, queries, asked, batch_size=config.batch_size)
        write_predictions(manifest.folder / PREDICTIONS, queries, windows)
        outputs.append(PREDICTIONS)
    else:
        windows, misfits = match(read_predictions(config.predictions), queries)
        tell(config.predictions, misfits)
        label = config.predictions.name
    metrics = {
        "variant": label,
        **_about(config, trained, store),
        "misfits": misfits,
        **scoring.of_predictions(windows[..., :2], truth),
        **scoring.baselines(store.queries("train"), truth),
        "query_blind": {
            "rule": RULE,
            "own_queries": num_own,
            **scoring.by_group(_predicted(trained, queries, blind, batch_size=config.batch_size)[..., :2], truth),
        },
    }
    write_json(manifest.folder / METRICS, metrics)
    return {"sha256": {name: sha256_file(manifest.folder / name) for name in outputs}}


def _require_same_kind(trained: TrainedRun, store: TrainingStore) -> None:
    if not trained.knows(store):
        raise ValueError(f"{store.path}: its vocabulary is not that of {trained.path}, so its token ids mean other words")
    if trained.recipe != store.recipe:
        raise ValueError(
            f"{store.path}: its features are of another recipe than those of {trained.path}: "
            f"{store.recipe}, not {trained.recipe}"
        )


def _asked(trained: TrainedRun, store: TrainingStore, queries: list[Query]) -> list[Example]:
    """An example for every query whose video has features; one for all moments that are answers to the same.

    By rounding alone predictions could differ from batch to batch.
    """
    first: dict[str, Query] = {}
    for query in queries:
        if query.video_id in store:
            first.setdefault(query.key, query)
    return load_examples(store, trained.asked(store, list(first.values())))


def _predicted(trained: TrainedRun, queries: list[Query], asked: list[Example], *, batch_size: int) -> np.ndarray:
    """Start, end, score of the best moments for every query, float64 [N, 5, 3]; NaN where there are none."""
    windows = np.full((len(queries), TOP, 3), np.nan)
    if asked:
        found = predict(trained.model, asked, batch_size=batch_size, k=TOP)
        by_query = {example.query.key: moments for example, moments in zip(asked, found, strict=True)}
        for index, query in enumerate(queries):
            windows[index] = by_query.get(query.key, np.nan)
    return windows


def _about(config: Config, trained: TrainedRun, store: TrainingStore) -> dict[str, Any]:
    """What the figures are of."""
    return {
        "dataset": store.about_queries["dataset"],
        "split": config.split,
        "split_made_of": store.about_queries["splits"].get(config.split, ""),
        "trained_on": trained.about_queries,
        "random_weights": trained.recipe["weights"]["random"],
        "feature_recipe": trained.recipe,
        "best_epoch": trained.best,
        "selected_on": trained.selected_on,
        "stamp": trained.stamp,
    }


def show(evaluation: Evaluation) -> str:
    """The results as a table for people."""
    return table(evaluation.folder, strict=evaluation.strict)


def table(folder: Path, *, strict: bool = False) -> str:
    """The results in the folder of an evaluation as a table for people."""
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    covered = "with features" if metrics["misfits"] is None else "with an answer"
    lines = [
        f"{metrics['dataset']}, split {metrics['split']} ({metrics['split_made_of']}): {metrics['num_queries']:,} queries, "
        f"{metrics['num_covered']:,} {covered}",
        *score_table.table(scoring.rows(metrics, covered=f"those {covered}"), strict=strict),
    ]
    if metrics["random_weights"]:
        lines.append("The features come from an I3D with RANDOM weights: the figures show that the chain works, no more.")
    if metrics["stamp"]:
        lines.append(metrics["stamp"])
    lines.append(f"metrics: {(folder / METRICS).resolve()}")
    return "\n".join(lines)
