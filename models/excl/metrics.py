"""How well predicted moments fit the annotated ones: temporal IoU, R@1 and mIoU, in float64 and without rounding.

Moments are arrays [N, 2] of (start_s, end_s), one row a query.
"""

import numpy as np

THRESHOLDS = (0.3, 0.5, 0.7)
"""The IoU from which a prediction counts as a hit, as in the paper's Table 1."""


def temporal_iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return intersection over union of moments, float64 [N] in 0..1, for two arrays [N, 2].

    The union is the length of both less what they share, so a gap between them does not count. Two moments of no
    length have IoU 0; so has a predicted moment that is NaN (none was predicted).

    Raises ValueError for shapes that differ or are not [N, 2], and for moments that end before they start.
    """
    predicted, truth = _checked_moments(predicted, "predicted"), _checked_moments(truth, "annotated")
    if predicted.shape != truth.shape:
        raise ValueError(f"{len(predicted)} predicted moments for {len(truth)} annotated ones; wanted one for each")
    if np.isnan(truth).any():
        raise ValueError(f"annotated moment {np.isnan(truth).any(axis=1).argmax()} is NaN; only predictions may lack")
    shared_s = np.minimum(predicted[:, 1], truth[:, 1]) - np.maximum(predicted[:, 0], truth[:, 0])
    shared_s = np.maximum(shared_s, 0.0)
    union_s = predicted[:, 1] - predicted[:, 0] + truth[:, 1] - truth[:, 0] - shared_s
    return np.divide(shared_s, union_s, out=np.zeros(len(truth)), where=union_s > 0)


def _checked_moments(moments: np.ndarray, what: str) -> np.ndarray:
    """Return moments as float64 [N, 2]. Raises ValueError where one is neither a finite interval nor NaN throughout."""
    moments = np.asarray(moments, dtype=np.float64)
    if moments.ndim != 2 or moments.shape[1] != 2:
        raise ValueError(f"{what} moments have shape {list(moments.shape)}; wanted [queries, 2]")
    interval = np.isfinite(moments).all(axis=1) & (moments[:, 0] <= moments[:, 1])
    broken = ~(interval | np.isnan(moments).all(axis=1))
    if broken.any():
        index = int(broken.argmax())
        start_s, end_s = moments[index]
        raise ValueError(f"{what} moment {index} goes from {start_s} s to {end_s} s; wanted finite times in order")
    return moments


def summary(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float | int]:
    """Return num_queries, R1@0.3, R1@0.5, R1@0.7 and mIoU, the last four in percent of all queries.

    R@1 counts IoU >= the threshold, exactly. A prediction that is missing (a row of NaN) is a miss with IoU 0.

    Raises ValueError where there are no queries, and as temporal_iou does.
    """
    iou = temporal_iou(predicted, truth)
    if len(iou) == 0:
        raise ValueError("no queries to evaluate")
    hits = {f"R1@{threshold}": 100 * int((iou >= threshold).sum()) / len(iou) for threshold in THRESHOLDS}
    return {"num_queries": len(iou), **hits, "mIoU": 100.0 * float(iou.mean())}


def best_fixed_span(
    starts_s: np.ndarray, ends_s: np.ndarray, durations_s: np.ndarray, *, steps: int = 20, threshold: float = 0.5
) -> tuple[float, float]:
    """Return the part (a, b) of a video, 0 <= a < b <= 1 on a grid of 1/steps, that fits most of these moments.

    Answering every query with a to b of its video is the baseline that knows only when moments happen; fit it on the
    training split. Most means R@1 at the threshold, then mIoU, then the earlier a, then the earlier b.

    Raises ValueError where there are no moments or a duration is not positive, and as temporal_iou does.
    """
    assert steps >= 1, f"a grid of {steps} steps"
    durations_s = np.asarray(durations_s, dtype=np.float64)
    if len(durations_s) == 0 or not (np.isfinite(durations_s) & (durations_s > 0)).all():
        raise ValueError(f"{len(durations_s)} durations; wanted at least one, and all of them positive")
    truth = np.stack([starts_s, ends_s], axis=1)  # [N, 2]
    best, best_score = (0.0, 1.0), (-1, -1.0)
    for first in range(steps):
        for last in range(first + 1, steps + 1):
            span = np.array([first / steps, last / steps])
            iou = temporal_iou(durations_s[:, None] * span, truth)
            score = (int(np.count_nonzero(iou >= threshold)), float(iou.mean()))
            if score > best_score:
                best, best_score = (first / steps, last / steps), score
    return best
