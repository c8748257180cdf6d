"""Evaluate a trained run on a split: read a run and a training store, leave predictions and metrics.

    predictions.jsonl  one query a line in Moment-DETR's format, the ten best moments
    metrics.json       R@1 and R@5 at IoU 0.3, 0.5 and 0.7 and mIoU, with 95 % intervals of a bootstrap by video, of the
                       model and of six baselines, by group of queries; "strict" figures count IoU > in place of >=;
                       the same by kind of query (kinds), without intervals;
                       mAP and R@1 by length of the moments as Moment-DETR's evaluator has them (moment_detr)

All queries of the split count: those whose video has no features are misses. The metrics over the others are given too.
The baselines are the best fixed part of every video, a prior over times, one by verb, the query without the video, the video
without the query (data_baselines.py), all fitted on the training split, and the model itself asked other videos' queries
(query_blind.py has the rule).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.text.vocabulary import UnseenWords
from excl.models.excl import variant_label
from excl.models.i3d.extractor import choose_device
from excl.pipeline.artifacts.atomic_files import sha256_file, write_bytes, write_json
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.run_once import run_once
from excl.pipeline.config import STRICT, PositiveInt, RunOnly, SaidInText, identity
from excl.pipeline.evaluation import metrics_table, split_metrics
from excl.pipeline.evaluation.moment_detr_metrics import MOST_WINDOWS, moment_metrics
from excl.pipeline.evaluation.predictions import TOP, require_own_qids, write_predictions
from excl.pipeline.evaluation.query_blind import RULE, swap_queries
from excl.pipeline.evaluation.query_kinds import metrics_by_kind, query_kinds
from excl.pipeline.store.training_store import Query, TrainingStore
from excl.pipeline.training.examples import Example, load_examples
from excl.pipeline.training.trained_run import TrainedRun, load_run, predict, store_of

STAGE, CODE_VERSION = "evaluate", 8
METRICS, PREDICTIONS = "metrics.json", "predictions.jsonl"


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig:
    """Evaluate a trained run on a split of a training store, and six baselines with it."""

    run: RunOnly[Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]]
    """The run that `excl train` wrote."""
    store: RunOnly[SaidInText[Path | None]] = None
    """The training store to evaluate on, with the run's vocabulary and feature recipe. Default: the one that the run was
    trained on, if it is still where it was."""
    out: RunOnly[SaidInText[Path | None]] = None
    """The folder to write: predictions.jsonl and metrics.json. Default: RUN-evaluation-SPLIT, next to the run."""
    split: Literal["train", "val", "test"] = "test"
    """The split to evaluate on."""
    unseen_words: SaidInText[UnseenWords | None] = None
    """Treatment of words that the run's vocabulary lacks: vector, their own vectors, or unk, one unknown word. Default: as
    the run's epoch was chosen."""
    predictions: RunOnly[Path | None] = None
    """Write the predictions to this file too: JSON lines in Moment-DETR's format, as `excl score` reads them."""
    strict: RunOnly[bool] = False
    """Show the figures that count only what is above a threshold, as some published code does. metrics.json has both."""
    batch_size: RunOnly[PositiveInt] = 64
    """Queries at a time."""
    device: RunOnly[str] = "auto"
    """Device to compute on: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        choose_device(self.device)
        if self.out is None:
            object.__setattr__(self, "out", self.run.with_name(f"{self.run.absolute().name}-evaluation-{self.split}"))

    @property
    def folder(self) -> Path:
        """The folder to write."""
        assert self.out is not None
        return self.out

    def inputs(self) -> list[Path]:
        """The folders that are read."""
        return [self.run] if self.store is None else [self.run, self.store]


def run(config: EvaluateConfig) -> Path:
    """Evaluate unless it is done. Return the folder of the evaluation."""
    if config.predictions is not None:
        _require_free(config.predictions, config.folder)
    folder = run_once(
        config.folder,
        stage=STAGE,
        identity=made_by(config),
        code_version=CODE_VERSION,
        build=lambda manifest: _evaluate(config, manifest.folder),
    )
    if config.predictions is not None:
        write_bytes(config.predictions, (folder / PREDICTIONS).read_bytes())
    return folder


def _open_store(config: EvaluateConfig) -> TrainingStore:
    return TrainingStore(config.store or store_of(config.run))


def _require_free(path: Path, folder: Path) -> None:
    """Raise ValueError if the file exists and is not of this evaluation or of one next to it: a user may want it scored."""
    plain_name = re.sub("-[0-9a-f]{8}$", "", folder.name)
    candidates = [folder.with_name(plain_name), *folder.parent.glob(f"{plain_name}-{'[0-9a-f]' * 8}")]
    evaluations = [file for candidate in candidates if (file := candidate / PREDICTIONS).is_file()]
    is_own = path.is_file() and any(
        file.read_bytes() == path.read_bytes() and (file.parent == folder or not file.samefile(path)) for file in evaluations
    )
    if path.exists() and not is_own:
        raise ValueError(
            f"predictions: {path} exists already; `excl score {path} --against STORE` measures predictions, "
            "and to write this run's, choose another file or remove that one"
        )


def made_by(config: EvaluateConfig) -> dict[str, Any]:
    """The identity of an evaluation: all that determines its metrics."""
    return {
        **identity(config),
        "run": Manifest.read(config.run).fingerprint(),
        "store": _open_store(config).manifest.fingerprint(),
    }


def _evaluate(config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    store, trained = _open_store(config), load_run(config.run, device=config.device)
    _require_same_kind(trained, store)
    queries = store.queries(config.split)
    require_own_qids(queries)
    unseen_words = config.unseen_words or trained.unseen_words
    truth = split_metrics.GroundTruth.from_queries(queries)
    examples = _examples(trained, store, queries, unseen_words=unseen_words)
    swapped, num_own = swap_queries(examples) if examples else ([], 0)
    training = store.queries("train")
    windows, blind_windows = _predict_windows(trained, queries, [examples, swapped], batch_size=config.batch_size)
    write_predictions(folder / PREDICTIONS, queries, windows)
    query_facts = store.about_queries
    baselines, answers = split_metrics.baselines(training, queries, truth, store)
    answers = {"model": windows[:, :TOP, :2], **answers, "query_blind": blind_windows[:, :TOP, :2]}
    kinds = query_kinds(queries, truth, training, training_words=frozenset(trained.words[2:]))
    metrics = {
        "variant": variant_label(trained.model.config),
        "dataset": query_facts["dataset"],
        "split": config.split,
        "split_made_of": query_facts["splits"].get(config.split, ""),
        "trained_on": trained.about_queries,
        "random_weights": trained.recipe["weights"]["random"],
        "feature_recipe": trained.recipe,
        "unseen_words": unseen_words,
        "best_epoch": trained.best,
        "selected_on": trained.selected_on,
        "stamp": trained.stamp,
        **split_metrics.prediction_metrics(answers["model"], truth),
        "moment_detr": moment_metrics(windows, truth),
        **baselines,
        "query_blind": {
            "rule": RULE,
            "own_queries": num_own,
            **split_metrics.metrics_by_group(answers["query_blind"], truth),
        },
        "kinds": metrics_by_kind(answers, truth, kinds),
    }
    write_json(folder / METRICS, metrics)
    return {"sha256": {name: sha256_file(folder / name) for name in (METRICS, PREDICTIONS)}}


def _require_same_kind(trained: TrainedRun, store: TrainingStore) -> None:
    if not trained.accepts(store):
        raise ValueError(f"{store.path}: its vocabulary is not that of {trained.path}, so its token ids mean other words")
    if trained.recipe != store.recipe:
        raise ValueError(
            f"{store.path}: its features are of another recipe than those of {trained.path}: "
            f"{store.recipe}, not {trained.recipe}"
        )


def _examples(
    trained: TrainedRun, store: TrainingStore, queries: list[Query], *, unseen_words: UnseenWords
) -> list[Example]:
    """Return an example for every query whose video has features; moments that answer the same query share one.

    With an example for each, predictions could differ from batch to batch by rounding.
    """
    by_key: dict[str, Query] = {}
    for query in queries:
        if query.video_id in store:
            by_key.setdefault(query.key, query)
    asked = list(by_key.values())
    return load_examples(store, trained.with_token_ids(store, asked, unseen_words=unseen_words))


def _predict_windows(
    trained: TrainedRun, queries: list[Query], example_lists: Sequence[list[Example]], *, batch_size: int
) -> list[np.ndarray]:
    """Return start, end, score of the best moments for every query, float64 [N, 10, 3], NaN where there are none.

    There is one array for each list of examples; all lists are predicted together, so that a video is encoded once.
    """
    moments = predict(trained.model, list(chain(*example_lists)), batch_size=batch_size, k=MOST_WINDOWS)
    borders = np.cumsum([len(examples) for examples in example_lists])[:-1]
    missing = np.full((MOST_WINDOWS, 3), np.nan)
    windows = []
    for examples, answers in zip(example_lists, np.split(moments, borders), strict=True):
        by_key = {example.query.key: best for example, best in zip(examples, answers, strict=True)}
        windows.append(np.stack([by_key.get(query.key, missing) for query in queries]))
    return windows


def show(config: EvaluateConfig, folder: Path) -> str:
    """The results as a table for people."""
    return table(folder, strict=config.strict)


def table(folder: Path, *, strict: bool = False) -> str:
    """The results in the folder of an evaluation as a table for people."""
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    lines = [
        f"{metrics['dataset']}, split {metrics['split']} ({metrics['split_made_of']}): {metrics['num_queries']:,} queries, "
        f"{metrics['num_covered']:,} with features",
        *metrics_table.table(split_metrics.rows(metrics, covered="those with features"), strict=strict),
        *metrics_table.kinds_table(metrics["kinds"]),
        *metrics_table.moment_detr_table(metrics["moment_detr"]),
        metrics_table.ABOUT_BASELINES,
    ]
    if metrics["random_weights"]:
        lines.append("The features come from an I3D with RANDOM weights: the figures show that the chain works, no more.")
    if metrics["stamp"]:
        lines.append(metrics["stamp"])
    lines.append(f"metrics: {(folder / METRICS).resolve()}")
    return "\n".join(lines)
