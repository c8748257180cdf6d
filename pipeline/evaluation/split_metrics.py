"""The metrics of predictions on a split, and of the baselines of the data set, for `excl evaluate` and `excl score`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from excl.models.excl import TimePrior, best_fixed_span, confidence_intervals, summary
from excl.pipeline.evaluation import data_baselines
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.training_store import Query

INTERVAL = "interval_95"
"""The key of the intervals among metrics."""
LEAST_VIDEOS = 5
"""The number of videos from which there are intervals: draws of fewer are too much alike, and those of one are the same."""
NO_INTERVAL = f"There is no interval below {LEAST_VIDEOS} videos."
BASELINES = {
    "best_fixed_span": "best fixed span",
    "time_prior": "time prior",
    "verb_prior": "verb prior",
    "query_only": "query only",
    "video_only": "video only",
    "query_blind": "query-blind",
}
BASELINE_KNOWLEDGE = {
    "best_fixed_span": "when moments happen; it answers with the same part of every video.",
    "time_prior": "when moments happen in videos of such a duration.",
    "verb_prior": "the verb of the query, and when moments with this verb happen.",
    "query_only": "the words of the query and the duration; it answers as for the training queries most like it.",
    "video_only": "the features and the duration; it answers as for the moments of the training videos most like it.",
    "query_blind": "what the model knows, but is asked another video's query.",
}
"""The knowledge of each of the baselines."""


@dataclass(frozen=True)
class GroundTruth:
    """The annotated moments of a split as columns: seconds [N, 2], and query, video, group and duration [N]."""

    moments: np.ndarray
    query_ids: np.ndarray
    video_ids: np.ndarray
    groups: np.ndarray
    durations_s: np.ndarray

    @classmethod
    def from_queries(cls, queries: Sequence[Query]) -> GroundTruth:
        """The moments of queries; a duration that is not known is NaN."""
        return cls(
            np.array([[query.start_s, query.end_s] for query in queries], dtype=np.float64),
            np.array([query.key for query in queries]),
            np.array([query.video_id for query in queries]),
            np.array([query.group for query in queries]),
            np.array([np.nan if query.duration_s is None else query.duration_s for query in queries]),
        )

    def select(self, mask: np.ndarray) -> GroundTruth:
        """The moments where the mask [N] is True."""
        return GroundTruth(*(column[mask] for column in vars(self).values()))


def metrics_with_intervals(predicted: np.ndarray, truth: GroundTruth) -> dict[str, Any]:
    """The summary of predictions [N, 2] or [N, k, 2], with the 95 % intervals of a bootstrap by video.

    There are no intervals of fewer than LEAST_VIDEOS videos.
    """
    metrics: dict[str, Any] = {**summary(predicted, truth.moments, truth.query_ids), INTERVAL: {}}
    if len(set(truth.video_ids)) >= LEAST_VIDEOS:
        intervals = confidence_intervals(predicted, truth.moments, truth.video_ids, truth.query_ids)
        metrics[INTERVAL] = {name: list(interval) for name, interval in intervals.items()}
    return metrics


def metrics_by_group(predicted: np.ndarray, truth: GroundTruth) -> dict[str, Any]:
    """The metrics over all queries and, if there are several groups, over each."""
    names = sorted(set(truth.groups.tolist()))
    masks = {name: truth.groups == name for name in names} if len(names) > 1 else {}
    return {
        "all": metrics_with_intervals(predicted, truth),
        "groups": {name: metrics_with_intervals(predicted[mask], truth.select(mask)) for name, mask in masks.items()},
    }


def prediction_metrics(predicted: np.ndarray, truth: GroundTruth) -> dict[str, Any]:
    """The metrics of predictions [N, k, 2] over all queries, and over those that have an answer if only some have one."""
    answered = ~np.isnan(predicted).all(axis=(1, 2))
    partial = answered.any() and not answered.all()
    return {
        "num_queries": len(set(truth.query_ids)),
        "num_covered": len(set(truth.query_ids[answered])),
        "model": metrics_by_group(predicted, truth),
        "model_where_covered": metrics_with_intervals(predicted[answered], truth.select(answered)) if partial else None,
    }


def baselines(
    training: Sequence[Query], queries: Sequence[Query], truth: GroundTruth, store: FeatureStore | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metrics of the baselines of the data set, and their answers, in seconds [N, 2] or [N, 5, 2].

    None sees query and video. All are None without training moments whose video has a known duration, and `video_only`
    without features.
    """
    moments = [(q.start_s, q.end_s, q.duration_s) for q in training if q.duration_s is not None]
    names = [name for name in BASELINES if name != "query_blind"]
    if not moments:
        return dict.fromkeys(names), {}
    columns = np.array(moments, dtype=np.float64).T
    start, end = best_fixed_span(*columns)
    answers = {
        "best_fixed_span": truth.durations_s[:, None] * [start, end],
        "time_prior": TimePrior.fit(*columns).predict(truth.durations_s),
        **data_baselines.predictions(training, queries, store),
    }
    metrics: dict[str, Any] = {name: metrics_by_group(answers[name], truth) if name in answers else None for name in names}
    metrics["best_fixed_span"]["of_duration"] = [start, end]
    metrics["verb_prior"]["rule"] = data_baselines.VERB_RULE
    return metrics, answers


def rows(metrics: Mapping[str, Any], *, covered: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The rows of a table: approach, group of queries, metrics. `covered` names the queries that could be answered."""
    for key, title in (("model", metrics["variant"]), *BASELINES.items()):
        if not metrics.get(key):
            continue
        span = metrics[key].get("of_duration")
        approach = f"{title} ({span[0]:.0%} to {span[1]:.0%})" if span else title
        yield approach, "all", metrics[key]["all"]
        for group, group_metrics in metrics[key]["groups"].items():
            yield approach, group or "(no group)", group_metrics
        if key == "model" and metrics["model_where_covered"]:
            yield approach, covered, metrics["model_where_covered"]
