"""The metrics that users of QVHighlights report: mAP and R@1 of moments by their length, HIT@1 and mAP of saliency.

They are those of Moment-DETR's evaluator (Lei et al., NeurIPS 2021, standalone_eval), rounded as it rounds them, to two
decimals. It differs where that one fails or leaves out: a query without a prediction counts as 0, a group without queries is
None, and `long` has no upper end (QVHighlights' videos have 150 s).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from excl.pipeline.evaluation.split_metrics import GroundTruth

MOST_WINDOWS = 10
"""Windows of a query that count for mAP."""
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
LENGTHS_S = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, np.inf), "full": (-np.inf, np.inf)}
"""The lengths of each group of moments: longer than the first number, at most the second."""
LEVELS = {"HL-min-Fair": 2, "HL-min-Good": 3, "HL-min-VeryGood": 4}
"""The least annotated saliency, 0 to 4, of a clip that counts as a highlight."""
CLIP_S = 2.0


def moment_metrics(predicted: np.ndarray, truth: GroundTruth) -> dict[str, Any]:
    """Return mAP and R@1, in percent, of predictions [N, k, 3]: start_s, end_s, score, in order, NaN where there are fewer.

    By group of `LENGTHS_S`: `num_queries`, `MR-mAP` by IoU threshold and as `average`, `MR-R1` by threshold. Of a query's
    moments those in the group count. Windows are ranked by their score for mAP; R@1 takes the first. A window whose times
    are NaN, but not its score, is a miss at its rank.
    """
    rows_of_query: dict[str, list[int]] = {}
    for row, query_id in enumerate(truth.query_ids):
        rows_of_query.setdefault(query_id, []).append(row)
    lengths_s = truth.moments[:, 1] - truth.moments[:, 0]
    metrics = {}
    for group, (over_s, up_to_s) in LENGTHS_S.items():
        in_group = (lengths_s > over_s) & (lengths_s <= up_to_s)
        of_query = {query_id: [row for row in rows if in_group[row]] for query_id, rows in rows_of_query.items()}
        pairs = [(predicted[rows[0]], truth.moments[rows]) for rows in of_query.values() if rows]
        figures: dict[str, Any] = {"num_queries": len(pairs), "MR-mAP": None, "MR-R1": None}
        if pairs:
            precisions = np.mean([_average_precisions(windows, moments) for windows, moments in pairs], axis=0)
            first = np.array([_first_iou(windows, moments) for windows, moments in pairs])
            at_thresholds = {
                str(threshold): _percent(value) for threshold, value in zip(THRESHOLDS, precisions, strict=True)
            }
            figures["MR-mAP"] = {**at_thresholds, "average": _percent(precisions.mean())}
            figures["MR-R1"] = {str(threshold): _percent(np.mean(first >= threshold)) for threshold in THRESHOLDS}
        metrics[group] = figures
    return metrics


def _average_precisions(windows: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the interpolated average precision of windows [k, 3] for moments [M, 2] at THRESHOLDS, float64 [10].

    In the order of their scores, each window takes the moment with the largest IoU that none before it has taken.
    """
    windows = windows[~np.isnan(windows[:, 2])][:MOST_WINDOWS]
    if len(windows) == 0:
        return np.zeros(len(THRESHOLDS))
    windows = windows[np.argsort(-windows[:, 2], kind="stable")]
    shared_s = np.minimum(windows[:, None, 1], moments[None, :, 1]) - np.maximum(windows[:, None, 0], moments[None, :, 0])
    shared_s = np.clip(shared_s, 0, None)
    union_s = (windows[:, 1] - windows[:, 0])[:, None] + (moments[:, 1] - moments[:, 0])[None] - shared_s
    iou = np.divide(shared_s, union_s, out=np.zeros_like(union_s), where=union_s > 0)  # [k, M]; 0 where NaN
    thresholds = np.array(THRESHOLDS)
    is_free = np.ones((len(thresholds), len(moments)), dtype=bool)
    hits = np.zeros((len(thresholds), len(windows)))
    for rank, row in enumerate(iou):
        candidates = np.where(is_free & (row >= thresholds[:, None]), row, -1.0)  # [10, M]
        best = len(moments) - 1 - candidates[:, ::-1].argmax(axis=1)  # of equal ones the last
        hit = np.flatnonzero(candidates.max(axis=1) >= 0)
        hits[hit, rank] = 1
        is_free[hit, best[hit]] = False
    cumulative = hits.cumsum(axis=1)
    precision = cumulative / np.arange(1, len(windows) + 1)
    best_later = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (hits * best_later).sum(axis=1) / len(moments)


def _first_iou(windows: np.ndarray, moments: np.ndarray) -> float:
    """Return the largest IoU of the first window [3] with any of the moments [M, 2]; the union is that of the hull."""
    start_s, end_s = windows[0, :2]
    shared_s = np.clip(np.minimum(end_s, moments[:, 1]) - np.maximum(start_s, moments[:, 0]), 0, None)
    hull_s = np.maximum(end_s, moments[:, 1]) - np.minimum(start_s, moments[:, 0])
    return float(np.divide(shared_s, hull_s, out=np.zeros_like(hull_s), where=hull_s > 0).max())


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
