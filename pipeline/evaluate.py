"""What a trained run is worth on a split: reads a run and a training store, leaves predictions and metrics.

    predictions.jsonl  one query a line in Moment-DETR's format: qid, query, vid, pred_relevant_windows [[start, end, score]]
    metrics.json       R@1 at IoU 0.3, 0.5 and 0.7 and mIoU, of the model and of the best fixed span, by group of queries

All queries of the split count: those whose video has no features are misses. The figures over those that have are beside.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from excl.models.excl import THRESHOLDS, best_fixed_span, summary, variant_label
from excl.models.i3d.extractor import choose_device
from excl.pipeline.config import STRICT, PositiveInt, identity
from excl.pipeline.examples import load_examples
from excl.pipeline.manifest import Manifest, sha256_file, single, write_json, write_text
from excl.pipeline.store import Query, TrainingStore
from excl.pipeline.trained import TrainedRun, load_run, predict

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "evaluate", 4
COLUMNS = (*(f"R1@{threshold}" for threshold in THRESHOLDS), "mIoU")


@dataclass(frozen=True, config=STRICT)
class Config:
    """Evaluate a trained run on a split of a training store."""

    run: Path
    """The run that `excl train` wrote."""
    store: Path
    """The training store to evaluate on, with the run's vocabulary and feature recipe."""
    out: Path
    """The folder to write: predictions.jsonl and metrics.json."""
    split: Literal["train", "val", "test"] = "test"
    """The split to evaluate on."""
    batch_size: PositiveInt = 64
    """Queries at a time."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        choose_device(self.device)


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
    answered = {_query_id(query): _moment_detr(query, span) for query, span in zip(queries, predicted, strict=True)}
    lines = answered.values()
    write_text(manifest.folder / "predictions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    metrics = _metrics(config, trained, store, queries, predicted)
    write_json(manifest.folder / "metrics.json", metrics)
    outputs = ("predictions.jsonl", "metrics.json")
    return {"sha256": {name: sha256_file(manifest.folder / name) for name in outputs}}


def _require_same_kind(trained: TrainedRun, store: TrainingStore) -> None:
    if not trained.knows(store):
        raise ValueError(f"{store.path}: its vocabulary is not that of {trained.path}, so its token ids mean other words")
    if trained.recipe != store.recipe:
        raise ValueError(
            f"{store.path}: its features are of another recipe than those of {trained.path}: "
            f"{store.recipe}, not {trained.recipe}"
        )


def _predict_all(trained: TrainedRun, store: TrainingStore, queries: list[Query], *, batch_size: int) -> np.ndarray:
    """Start, end, score for every query, float64 [N, 3]; NaN where the video has no features.

    Answers to one query are predicted once: by rounding alone they could differ from batch to batch.
    """
    predicted = np.full((len(queries), 3), np.nan)
    first = {_query_id(query): index for index, query in reversed([*enumerate(queries)]) if query.video_id in store}
    if first:
        asked = [queries[index] for index in first.values()]
        spans = dict(
            zip(
                first,
                predict(trained.model, load_examples(store, trained.asked(store, asked)), batch_size=batch_size),
                strict=True,
            )
        )
        for index, query in enumerate(queries):
            predicted[index] = spans.get(_query_id(query), np.nan)
    return predicted


def _query_id(query: Query) -> str:
    """What moments that are answers to one query have in common."""
    return query.query_id or f"annotation {query.annotation_id}"


def _moment_detr(query: Query, span: np.ndarray) -> dict[str, Any]:
    windows = [] if np.isnan(span).any() else [[round(float(value), 4) for value in span]]
    return {
        "qid": query.query_id or query.annotation_id,
        "query": query.query,
        "vid": query.video_id,
        "pred_relevant_windows": windows,
    }


def _metrics(
    config: Config, trained: TrainedRun, store: TrainingStore, queries: list[Query], predicted: np.ndarray
) -> dict[str, Any]:
    truth = np.array([[query.start_s, query.end_s] for query in queries])
    ids = np.array([_query_id(query) for query in queries])
    groups = np.array([query.group for query in queries])
    covered = ~np.isnan(predicted[:, 0])
    return {
        "variant": variant_label(trained.model.config),
        "dataset": store.about_queries["dataset"],
        "split": config.split,
        "split_made_of": store.about_queries["splits"].get(config.split, ""),
        "trained_on": trained.about_queries,
        "num_queries": len(set(ids)),
        "num_covered": len(set(ids[covered])),
        "random_weights": trained.recipe["weights"]["random"],
        "feature_recipe": trained.recipe,
        "best_epoch": trained.best,
        "selected_on": trained.selected_on,
        "stamp": trained.stamp,
        "model": _by_group(predicted[:, :2], truth, groups, ids),
        "model_where_covered": summary(predicted[covered, :2], truth[covered], ids[covered]) if covered.any() else None,
        "best_fixed_span": _baseline(store, queries, truth, groups, ids),
    }


def _by_group(predicted: np.ndarray, truth: np.ndarray, groups: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
    """The summary over all queries and, if there are several groups, over each."""
    names = sorted(set(groups.tolist()))
    by_group = {name: summary(predicted[groups == name], truth[groups == name], ids[groups == name]) for name in names}
    return {"all": summary(predicted, truth, ids), "groups": by_group if len(names) > 1 else {}}


def _baseline(
    store: TrainingStore, queries: list[Query], truth: np.ndarray, groups: np.ndarray, ids: np.ndarray
) -> dict[str, Any] | None:
    """What the part of the duration that fits the training moments best scores: no look at the video, no reading.

    None if no training moment has a video of known duration.
    """
    known = [(q.start_s, q.end_s, q.duration_s) for q in store.queries("train") if q.duration_s is not None]
    if not known:
        return None
    a, b = best_fixed_span(*np.array(known, dtype=np.float64).T)
    durations_s = np.array([np.nan if q.duration_s is None else q.duration_s for q in queries])
    return {"of_duration": [a, b], **_by_group(durations_s[:, None] * [a, b], truth, groups, ids)}


def table(folder: Path) -> str:
    """The results of an evaluation as a table for people."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    lines = [
        f"{metrics['dataset']}, split {metrics['split']} ({metrics['split_made_of']}): {metrics['num_queries']:,} queries, "
        f"{metrics['num_covered']:,} with features",
        f"{'':32}{'queries':24}{'number':>8}" + "".join(f"{name:>9}" for name in COLUMNS),
        *_table_lines(metrics["variant"], metrics["model"]),
    ]
    if 0 < metrics["num_covered"] < metrics["num_queries"]:
        lines.append(_table_line(metrics["variant"], "those with features", metrics["model_where_covered"]))
    if metrics["best_fixed_span"]:
        a, b = metrics["best_fixed_span"]["of_duration"]
        lines += _table_lines(f"best fixed span ({a:.0%} to {b:.0%})", metrics["best_fixed_span"])
    if metrics["random_weights"]:
        lines.append("The features come from an I3D with RANDOM weights: the figures show that the chain works, no more.")
    if metrics["stamp"]:
        lines.append(metrics["stamp"])
    lines.append(f"metrics: {(folder / 'metrics.json').resolve()}")
    return "\n".join(lines)


def _table_lines(who: str, scores: dict[str, Any]) -> list[str]:
    groups = [_table_line(who, f"  {name or '(no group)'}", one) for name, one in scores["groups"].items()]
    return [_table_line(who, "all", scores["all"]), *groups]


def _table_line(who: str, queries: str, scores: dict[str, Any]) -> str:
    return f"{who:32}{queries:24}{scores['num_queries']:8,}" + "".join(f"{scores[name]:9.1f}" for name in COLUMNS)
