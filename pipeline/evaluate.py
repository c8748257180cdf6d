"""What a trained run is worth on a split: reads a run and a training store, leaves predictions and metrics.

    predictions.jsonl  one query a line in Moment-DETR's format: qid, query, vid, pred_relevant_windows [[start, end, score]]
    metrics.json       R@1 at IoU 0.3, 0.5 and 0.7 and mIoU, of the model and of the best fixed span, by group of queries

All queries of the split count: those whose video has no features are misses. The figures over those that have are beside.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from excl.models.excl import THRESHOLDS, best_fixed_span, summary
from excl.pipeline.config import STRICT, PositiveInt, identity
from excl.pipeline.examples import load_examples
from excl.pipeline.manifest import Manifest, sha256_file, single, write_json, write_text
from excl.pipeline.store import Query, TrainingStore
from excl.pipeline.train import TrainedRun, load_run, predict

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "evaluate", 1


@dataclass(frozen=True, config=STRICT)
class Config:
    """Evaluate a trained run on a split of a training store."""

    run: Path
    """The run that `excl train` wrote."""
    store: Path
    """The training store to evaluate on, with the run's vocabulary and feature recipe."""
    out: Path
    """The folder to write: predictions.jsonl and metrics.json."""
    split: str = "test"
    """The split to evaluate on."""
    batch_size: PositiveInt = 64
    """Queries at a time."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""


def run(config: Config) -> Path:
    """Evaluate unless it is done. Returns the folder."""
    run_manifest, store = Manifest.read(config.run), TrainingStore(config.store)
    made_by = identity(config, run_only=("run", "store", "out", "batch_size", "device"))
    made_by |= {"run": run_manifest.fingerprint(), "store": store.manifest.fingerprint()}
    return single(
        config.out,
        stage=STAGE,
        identity=made_by,
        code_version=CODE_VERSION,
        work=lambda manifest: _work(config, store, manifest),
    )


def _work(config: Config, store: TrainingStore, manifest: Manifest) -> dict[str, Any]:
    trained = load_run(config.run, device=config.device)
    _require_same_kind(trained, store)
    queries = store.queries(config.split)
    predicted = _predict_all(trained, store, queries, batch_size=config.batch_size)
    lines = [_moment_detr(query, span) for query, span in zip(queries, predicted, strict=True)]
    write_text(manifest.folder / "predictions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    metrics = _metrics(config, trained, store, queries, predicted)
    write_json(manifest.folder / "metrics.json", metrics)
    outputs = ("predictions.jsonl", "metrics.json")
    return {"sha256": {name: sha256_file(manifest.folder / name) for name in outputs}}


def _require_same_kind(trained: TrainedRun, store: TrainingStore) -> None:
    if trained.words != store.words:
        raise ValueError(f"{store.path}: its vocabulary is not that of {trained.path}, so its token ids mean other words")
    if trained.recipe != store.recipe:
        raise ValueError(
            f"{store.path}: its features are of another recipe than those of {trained.path}: "
            f"{store.recipe}, not {trained.recipe}"
        )


def _predict_all(trained: TrainedRun, store: TrainingStore, queries: list[Query], *, batch_size: int) -> np.ndarray:
    """Start, end, score for every query, float64 [N, 3]; NaN where the video has no features."""
    predicted = np.full((len(queries), 3), np.nan)
    covered = np.array([query.video_id in store for query in queries])
    if covered.any():
        predicted[covered] = predict(trained.model, load_examples(store, queries), batch_size=batch_size)
    return predicted


def _moment_detr(query: Query, span: np.ndarray) -> dict[str, Any]:
    windows = [] if np.isnan(span).any() else [[round(float(value), 4) for value in span]]
    return {
        "qid": query.annotation_id,
        "query": query.query,
        "vid": query.video_id,
        "pred_relevant_windows": windows,
    }


def _metrics(
    config: Config, trained: TrainedRun, store: TrainingStore, queries: list[Query], predicted: np.ndarray
) -> dict[str, Any]:
    fixed = _fixed_span(store)
    prior = np.array([[np.nan] * 2 if q.duration_s is None else [q.duration_s * part for part in fixed] for q in queries])
    covered = ~np.isnan(predicted[:, 0])
    groups = {"all": np.ones(len(queries), dtype=bool)}
    names = sorted({query.group for query in queries})
    if len(names) > 1:
        groups |= {name or "(no group)": np.array([query.group == name for query in queries]) for name in names}
    truth = np.array([[query.start_s, query.end_s] for query in queries])
    return {
        "dataset": trained.dataset,
        "split": config.split,
        "num_queries": len(queries),
        "num_covered": int(covered.sum()),
        "random_weights": trained.recipe["weights"]["source"].startswith("random:"),
        "feature_recipe": trained.recipe,
        "best_epoch": trained.best,
        "model": {name: summary(predicted[chosen, :2], truth[chosen]) for name, chosen in groups.items()},
        "model_where_covered": summary(predicted[covered, :2], truth[covered]) if covered.any() else None,
        "best_fixed_span": {
            "of_duration": fixed,
            **{name: summary(prior[chosen], truth[chosen]) for name, chosen in groups.items()},
        },
    }


def _fixed_span(store: TrainingStore) -> tuple[float, float]:
    """The part of the duration that fits the training moments best: what can be had without looking or reading."""
    known = [(q.start_s, q.end_s, q.duration_s) for q in store.queries("train") if q.duration_s is not None]
    return best_fixed_span(*np.array(known, dtype=np.float64).T)


def table(folder: Path) -> str:
    """The results of an evaluation as a table for people."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    a, b = metrics["best_fixed_span"]["of_duration"]
    rows = [("ExCL-clf 2-b", name, scores) for name, scores in metrics["model"].items()]
    if metrics["num_covered"] < metrics["num_queries"]:
        rows.append(("ExCL-clf 2-b", "all with features", metrics["model_where_covered"]))
    prior = {name: scores for name, scores in metrics["best_fixed_span"].items() if name != "of_duration"}
    rows += [(f"best fixed span ({a:.0%} to {b:.0%})", name, scores) for name, scores in prior.items()]
    columns = [f"R1@{threshold}" for threshold in THRESHOLDS] + ["mIoU"]
    lines = [
        f"{metrics['dataset']}, split {metrics['split']}: {metrics['num_queries']:,} queries, "
        f"{metrics['num_covered']:,} with features",
        f"{'':32}{'queries':24}{'number':>8}" + "".join(f"{name:>9}" for name in columns),
    ]
    for who, name, scores in rows:
        if scores is not None:
            numbers = "".join(f"{scores[column]:9.1f}" for column in columns)
            lines.append(f"{who:32}{name:24}{scores['num_queries']:8,}{numbers}")
    if metrics["random_weights"]:
        lines.append("The features come from an I3D with RANDOM weights: these figures show that the chain works, no more.")
    lines.append(f"metrics: {folder / 'metrics.json'}")
    return "\n".join(lines)
