"""The figures of predictions on a split, and of the baselines that look at no video: what evaluate and score share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from excl.models.excl import TimePrior, best_fixed_span, confidence_intervals, summary
from excl.pipeline.store.training_store import Query

INTERVAL = "interval_95"
"""The key under which figures have their intervals."""


@dataclass(frozen=True)
class GroundTruth:
    """The annotated moments of a split as columns: seconds [N, 2], and of each its query, video, group and duration [N]."""

    moments: np.ndarray
    query_ids: np.ndarray
    video_ids: np.ndarray
    groups: np.ndarray
    durations_s: np.ndarray

    @classmethod
    def from_queries(cls, queries: Sequence[Query]) -> GroundTruth:
        """The moments of queries; the duration is NaN where nothing knows it."""
        return cls(
            np.array([[query.start_s, query.end_s] for query in queries], dtype=np.float64),
            np.array([query.key for query in queries]),
            np.array([query.video_id for query in queries]),
            np.array([query.group for query in queries]),
            np.array([np.nan if query.duration_s is None else query.duration_s for query in queries]),
        )

    def select(self, chosen: np.ndarray) -> GroundTruth:
        """Those moments that are chosen [N]."""
        return GroundTruth(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def metrics_with_intervals(predicted: np.ndarray, truth: GroundTruth) -> dict[str, Any]:
    """The summary of predictions [N, 2] or [N, k, 2], with the 95 % intervals of a bootstrap by video."""
    found: dict[str, Any] = {**summary(predicted, truth.moments, truth.query_ids)}
    intervals = confidence_intervals(predicted, truth.moments, truth.video_ids, truth.query_ids)
    return {**found, INTERVAL: {name: list(interval) for name, interval in intervals.items()}}


def metrics_by_group(predicted: np.ndarray, truth: GroundTruth) -> dict[str, Any]:
    """The figures over all queries and, if there are several groups, over each."""
    names = sorted(set(truth.groups.tolist()))
    chosen = {name: truth.groups == name for name in names} if len(names) > 1 else {}
    return {
        "all": metrics_with_intervals(predicted, truth),
        "groups": {name: metrics_with_intervals(predicted[which], truth.select(which)) for name, which in chosen.items()},
    }


def prediction_metrics(predicted: np.ndarray, truth: GroundTruth) -> dict[str, Any]:
    """What is said of somebody's predictions [N, k, 2]: how many are answered, and the figures over all and over those."""
    answered = ~np.isnan(predicted).all(axis=(1, 2))
    whole = answered.all() or not answered.any()
    return {
        "num_queries": len(set(truth.query_ids)),
        "num_covered": len(set(truth.query_ids[answered])),
        "model": metrics_by_group(predicted, truth),
        "model_where_covered": None if whole else metrics_with_intervals(predicted[answered], truth.select(answered)),
    }


def baselines(training: Sequence[Query], truth: GroundTruth) -> dict[str, Any]:
    """What those score that know only when training moments happen; None without training moments of known duration."""
    known = [(q.start_s, q.end_s, q.duration_s) for q in training if q.duration_s is not None]
    if not known:
        return {"best_fixed_span": None, "time_prior": None}
    columns = np.array(known, dtype=np.float64).T
    a, b = best_fixed_span(*columns)
    fixed = metrics_by_group(truth.durations_s[:, None] * [a, b], truth)
    prior = metrics_by_group(TimePrior.fit(*columns).predict(truth.durations_s), truth)
    return {"best_fixed_span": {"of_duration": [a, b], **fixed}, "time_prior": prior}


def rows(metrics: Mapping[str, Any], *, covered: str) -> list[tuple[str, str, dict[str, Any]]]:
    """The figures as rows of a table: whose, on which queries, figures. `covered` names those that could be answered."""
    variant = metrics["variant"]
    found = _rows(variant, metrics["model"])
    if metrics["model_where_covered"]:
        found.append((variant, covered, metrics["model_where_covered"]))
    if metrics["best_fixed_span"]:
        a, b = metrics["best_fixed_span"]["of_duration"]
        found += _rows(f"best fixed span ({a:.0%} to {b:.0%})", metrics["best_fixed_span"])
    for key, name in (("time_prior", "time prior"), ("query_blind", "query-blind")):
        if metrics.get(key):
            found += _rows(name, metrics[key])
    return found


def _rows(who: str, scores: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    groups = [(who, f"  {name or '(no group)'}", one) for name, one in scores["groups"].items()]
    return [(who, "all", scores["all"]), *groups]
