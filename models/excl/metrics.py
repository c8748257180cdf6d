"""The fit of predicted moments to the annotated ones: temporal IoU, R@1, R@5 and mIoU, in float64 and without rounding.

Letters in shapes: N annotated moments, K predictions for each, best first, Q queries (N, if each has one moment). A moment
is (start_s, end_s); a prediction that is missing is NaN.
"""

import numpy as np

THRESHOLDS = (0.3, 0.5, 0.7)
"""The IoU from which a prediction counts as a hit, as in the paper's Table 1."""
RECALL_AT = (1, 5)
"""The numbers of predictions of which one has to hit."""

Times = np.ndarray | float


def interval_iou(start_s: Times, end_s: Times, other_start_s: Times, other_end_s: Times) -> np.ndarray:
    """Return intersection over union of intervals, float64 in 0..1, of the shape that the four times broadcast to.

    The union is the length of both less what they share, so a gap between them does not count. It is 0 for two intervals of
    no length, and where a time is NaN.
    """
    shared_s = np.maximum(np.minimum(end_s, other_end_s) - np.maximum(start_s, other_start_s), 0.0)
    union_s = np.asarray(end_s - start_s + (other_end_s - other_start_s) - shared_s, dtype=np.float64)
    return np.divide(shared_s, union_s, out=np.zeros(union_s.shape), where=union_s > 0)


def temporal_iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the IoU of predicted with annotated moments, float64 [N] or [N, K], for [N, 2] or [N, K, 2] and [N, 2].

    It is interval_iou's; a prediction that is missing has IoU 0.

    Raises ValueError for other shapes, for moments that end before they start, and for a moment that is partly NaN.
    """
    truth = _checked_moments(truth, "annotated", shapes="[moments, 2]", dimensions=(2,))
    predicted = _checked_moments(predicted, "predicted", shapes="[moments, 2] or [moments, k, 2]", dimensions=(2, 3))
    if len(predicted) != len(truth):
        raise ValueError(f"{len(predicted)} predicted moments for {len(truth)} annotated ones; expected one for each")
    if np.isnan(truth).any():
        raise ValueError(f"annotated moment {np.isnan(truth).any(axis=1).argmax()} is NaN; only predictions may lack")
    if predicted.ndim == 3:
        truth = truth[:, None]  # [N, 1, 2]
    return interval_iou(predicted[..., 0], predicted[..., 1], truth[..., 0], truth[..., 1])


def _checked_moments(moments: np.ndarray, kind: str, *, shapes: str, dimensions: tuple[int, ...]) -> np.ndarray:
    """Return moments as float64. Raises ValueError where one is neither a finite interval nor NaN throughout."""
    moments = np.asarray(moments, dtype=np.float64)
    if moments.ndim not in dimensions or moments.shape[-1] != 2:
        raise ValueError(f"{kind} moments have shape {list(moments.shape)}; expected {shapes}")
    interval = np.isfinite(moments).all(axis=-1) & (moments[..., 0] <= moments[..., 1])
    broken = ~(interval | np.isnan(moments).all(axis=-1))
    if broken.any():
        index = tuple(np.argwhere(broken)[0])
        start_s, end_s = moments[index]
        raise ValueError(f"{kind} moment {index[0]} goes from {start_s} s to {end_s} s; expected finite times in order")
    return moments


def query_ious(predicted: np.ndarray, truth: np.ndarray, query_ids: np.ndarray | None = None) -> np.ndarray:
    """Return the IoU of the predictions for every query, float64 [Q, K], for moments [N, 2] or [N, K, 2] and [N, 2].

    `query_ids` [N] says which annotated moments are alternatives of one query: those with the same id, of which the best
    IoU counts. Queries are in the order in which their ids first appear. Without it every moment is a query of its own.

    Raises ValueError where moments of one query have different predictions, and as temporal_iou does.
    """
    iou = temporal_iou(predicted, truth)
    if iou.ndim == 1:
        iou = iou[:, None]  # [N] -> [N, 1]
    if query_ids is None:
        return iou
    first_rows, query = _queries(query_ids, len(iou))
    predicted = np.asarray(predicted, dtype=np.float64)
    expected = predicted[first_rows[query]]
    differs = (predicted != expected) & ~(np.isnan(predicted) & np.isnan(expected))
    if differs.any():
        row = int(differs.reshape(len(iou), -1).any(axis=1).argmax())
        raise ValueError(f"query {query_ids[row]}: its annotated moments come with different predictions")
    best = np.zeros((len(first_rows), iou.shape[1]))
    np.maximum.at(best, query, iou)
    return best


def _queries(query_ids: np.ndarray, num_moments: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of every query, in order, int [Q], and which query every row belongs to, int [N]."""
    if len(query_ids) != num_moments:
        raise ValueError(f"{len(query_ids)} query ids for {num_moments} annotated moments")
    _, first_rows, inverse = np.unique(np.asarray(query_ids), return_index=True, return_inverse=True)
    order = np.argsort(first_rows)
    return first_rows[order], np.argsort(order)[inverse]


def query_figures(iou: np.ndarray) -> dict[str, np.ndarray]:
    """Return what every query adds to each figure, in percent, float64 [Q], for IoUs [Q, K]."""
    if len(iou) == 0:
        raise ValueError("no queries to evaluate")
    figures: dict[str, np.ndarray] = {}
    for k in RECALL_AT:
        if k <= iou.shape[1]:
            best = iou[:, :k].max(axis=1)
            figures |= {f"R{k}@{threshold}": 100.0 * (best >= threshold) for threshold in THRESHOLDS}
            figures |= {f"R{k}@{threshold} strict": 100.0 * (best > threshold) for threshold in THRESHOLDS}
    return {**figures, "mIoU": 100.0 * iou[:, 0]}


def summary(predicted: np.ndarray, truth: np.ndarray, query_ids: np.ndarray | None = None) -> dict[str, float | int]:
    """Return num_queries, R1@0.3, R1@0.5, R1@0.7 and mIoU, the last four in percent of all queries, and related figures.

    R@k counts queries of which one of the first k predictions has IoU >= the threshold, exactly; "R1@0.5 strict" and its
    like count IoU > the threshold, as some published code does. R5 is there for five or more predictions [N, K, 2]. mIoU is
    of the first prediction. A prediction that is missing (NaN) is a miss with IoU 0. `query_ids` are those of query_ious.

    Raises ValueError where there are no queries, and as query_ious does.
    """
    iou = query_ious(predicted, truth, query_ids)
    return {"num_queries": len(iou)} | {name: float(values.mean()) for name, values in query_figures(iou).items()}


def confidence_intervals(
    predicted: np.ndarray,
    truth: np.ndarray,
    video_ids: np.ndarray,
    query_ids: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the interval of each figure of `summary` over other draws of videos of the same kind.

    It is a bootstrap by percentiles: as many videos as there are, each with all its queries, are drawn with replacement,
    since queries of one video are no independent samples. `video_ids` [N] says which moment is of which video.

    Raises ValueError as summary does, and for ids of another number.
    """
    assert 0 < confidence < 1, f"confidence {confidence}"
    assert resamples >= 1, f"{resamples} resamples"
    if len(video_ids) != len(truth):
        raise ValueError(f"{len(video_ids)} video ids for {len(truth)} annotated moments")
    figures = query_figures(query_ious(predicted, truth, query_ids))
    query_rows = slice(None) if query_ids is None else _queries(query_ids, len(truth))[0]
    _, video, num_queries = np.unique(np.asarray(video_ids)[query_rows], return_inverse=True, return_counts=True)
    totals = np.stack([np.bincount(video, weights=values) for values in figures.values()], axis=1)  # [videos, figures]
    random = np.random.default_rng(seed)
    means = np.empty((resamples, len(figures)))
    for resample in range(resamples):
        times = np.bincount(random.integers(len(totals), size=len(totals)), minlength=len(totals))  # each video was drawn
        means[resample] = times @ totals / (times @ num_queries)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(figures)}
