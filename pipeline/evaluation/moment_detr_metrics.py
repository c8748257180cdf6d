"""The metrics that users of QVHighlights report: mAP and R@1 of moments by their length, HIT@1 and mAP of saliency.

They are those of Moment-DETR's evaluator (Lei et al., NeurIPS 2021, standalone_eval), rounded as it rounds them, to two
decimals. It differs where that one fails or leaves out: a query without a prediction counts as 0, a group without queries is
None, and `long` has no upper end (QVHighlights' videos have 150 s).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from excl.models.excl.metrics import interval_iou
from excl.pipeline.evaluation.split_metrics import GroundTruth

MOST_WINDOWS = 10
"""Windows of a query that count for mAP."""
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
LENGTHS_S = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, np.inf), "full": (-np.inf, np.inf)}
"""The lengths of each group of moments: longer than the first number, at most the second."""
LEVELS = {"HL-min-Fair": 2, "HL-min-Good": 3, "HL-min-VeryGood": 4}
"""The least annotated saliency, 0 to 4, of a clip that counts as a highlight."""
CLIP_S = 2.0
QUERIES_AT_ONCE = 2048
"""The most queries whose precisions are computed together, for memory's sake."""


def moment_metrics(predicted: np.ndarray, truth: GroundTruth) -> dict[str, Any]:
    """Return mAP and R@1, in percent, of predictions [N, k, 3]: start_s, end_s, score, in order, NaN where there are fewer.

    By group of `LENGTHS_S`: `num_queries`, `MR-mAP` by IoU threshold and as `average`, `MR-R1` by threshold. Of a query's
    moments those in the group count. Windows are ranked by their score for mAP; R@1 takes the first. A window whose times
    are NaN, but not its score, is a miss at its rank.
    """
    _, first_rows, query = np.unique(truth.query_ids, return_index=True, return_inverse=True)
    lengths_s = truth.moments[:, 1] - truth.moments[:, 0]
    metrics = {}
    for group, (over_s, up_to_s) in LENGTHS_S.items():
        chosen = np.flatnonzero((lengths_s > over_s) & (lengths_s <= up_to_s))
        asked, place = np.unique(query[chosen], return_inverse=True)
        figures: dict[str, Any] = {"num_queries": len(asked), "MR-mAP": None, "MR-R1": None}
        if len(asked):
            windows, moments = predicted[first_rows[asked]], _by_query(truth.moments[chosen], place)
            parts = np.array_split(np.arange(len(asked)), -(-len(asked) // QUERIES_AT_ONCE))
            precisions = np.concatenate([_average_precisions(windows[part], moments[part]) for part in parts]).mean(axis=0)
            first = _iou(windows[:, :1], moments).max(axis=(1, 2))
            at_thresholds = {
                str(threshold): _percent(value) for threshold, value in zip(THRESHOLDS, precisions, strict=True)
            }
            figures["MR-mAP"] = {**at_thresholds, "average": _percent(precisions.mean())}
            figures["MR-R1"] = {str(threshold): _percent(np.mean(first >= threshold)) for threshold in THRESHOLDS}
        metrics[group] = figures
    return metrics


def _by_query(moments: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return moments [N, 2] by query, float64 [Q, M, 2], in order, NaN where a query has fewer than M."""
    order = np.argsort(query, kind="stable")
    counts = np.bincount(query)
    number = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    by_query = np.full((len(counts), counts.max(), 2), np.nan)
    by_query[query[order], number] = moments[order]
    return by_query


def _iou(windows: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the IoU of windows [Q, k, 2 or 3] with moments [Q, M, 2], float64 [Q, k, M]; 0 where a time is NaN."""
    starts_s, ends_s = windows[:, :, None, 0], windows[:, :, None, 1]
    return interval_iou(starts_s, ends_s, moments[:, None, :, 0], moments[:, None, :, 1])


def _average_precisions(windows: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the interpolated average precision of every query at THRESHOLDS, float64 [Q, 10].

    In the order of their scores, each of its windows [Q, k, 3] takes the one of its moments [Q, M, 2] with the largest IoU
    that none before it has taken.
    """
    given_first = np.argsort(np.isnan(windows[..., 2]), axis=1, kind="stable")[:, :MOST_WINDOWS, None]
    windows = np.take_along_axis(windows, given_first, axis=1)
    windows = np.take_along_axis(windows, np.argsort(-windows[..., 2], axis=1, kind="stable")[..., None], axis=1)
    iou, thresholds = _iou(windows, moments), np.array(THRESHOLDS)[:, None]
    num_queries, num_windows, num_moments = iou.shape
    is_free = np.ones((num_queries, len(THRESHOLDS), num_moments), dtype=bool)
    hits = np.zeros((num_queries, len(THRESHOLDS), num_windows))
    for rank in range(num_windows):
        row = iou[:, rank, None, :]  # [Q, 1, M]
        candidates = np.where(is_free & (row >= thresholds), row, -1.0)  # [Q, 10, M]
        best = num_moments - 1 - candidates[..., ::-1].argmax(axis=2)  # of equal ones the last
        query, level = np.nonzero(candidates.max(axis=2) >= 0)
        hits[query, level, rank] = 1
        is_free[query, level, best[query, level]] = False
    precision = hits.cumsum(axis=2) / np.arange(1, num_windows + 1)
    best_later = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    return (hits * best_later).sum(axis=2) / (~np.isnan(moments[..., 0])).sum(axis=1)[:, None]


def saliency_metrics(predicted: Mapping[str, np.ndarray], annotated: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return HIT@1 and mAP of predicted saliency, in percent, for each of LEVELS.

    `annotated` are the scores [clips, 3] by query, of three annotators each; `predicted` one score a clip. Missing clips
    have the score 0, clips too many do not count, and a query without a prediction counts as 0.
    """
    metrics = {}
    for level, least in LEVELS.items():
        hits, precisions = [], []
        for query_id, scores in annotated.items():
            guesses, is_highlight = predicted.get(query_id), scores >= least  # [clips, 3]
            if guesses is None or len(guesses) == 0:
                hits.append(0.0)
                precisions.append([0.0] * scores.shape[1])
                continue
            best = int(guesses.argmax())
            hits.append(float(best < len(scores) and is_highlight[best].any()))
            fitted = np.zeros(len(scores))
            fitted[: len(guesses)] = guesses[: len(scores)]
            precisions.append([_saliency_precision(column, fitted) for column in is_highlight.T])
        metrics[level] = {"HL-mAP": _percent(np.mean(precisions)), "HL-Hit1": _percent(np.mean(hits))}
    return metrics


def _saliency_precision(is_highlight: np.ndarray, scores: np.ndarray) -> float:
    """Return the interpolated average precision of scores [clips]: the mean over the recalls that a threshold reaches."""
    if is_highlight.all() or not is_highlight.any():
        return float(is_highlight.all())
    order = np.argsort(-scores, kind="stable")
    last_of_equal = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = is_highlight[order].cumsum()[last_of_equal]  # by falling threshold
    precision = hits / (last_of_equal + 1)
    best_later = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_later[np.diff(hits, prepend=0) > 0].mean())


def _percent(share: float | np.floating) -> float:
    return float(f"{100 * share:.2f}")
