"""Baselines that do not look at the video: they know only when the moments of the training split happen."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from excl.models.excl.metrics import interval_iou, temporal_iou

_MOMENTS_A_BIN = 50
"""The training moments that each bin of durations in a time prior needs."""


def best_fixed_span(
    starts_s: np.ndarray, ends_s: np.ndarray, durations_s: np.ndarray, *, steps: int = 20, threshold: float = 0.5
) -> tuple[float, float]:
    """Return the part (a, b) of a video, 0 <= a < b <= 1 on a grid of 1/steps, that fits most of these moments.

    Answering every query with a to b of its video is the baseline that knows only when moments happen; fit it on the
    training split. Most means R@1 at the threshold, then mIoU, then the earlier a, then the earlier b.

    Raises ValueError where there are no moments or a duration is not positive, and as temporal_iou does.
    """
    durations_s = _checked_durations(durations_s)
    truth = np.stack([starts_s, ends_s], axis=1)  # [N, 2]

    def score(span: tuple[float, float]) -> tuple[int, float]:
        iou = temporal_iou(durations_s[:, None] * np.array(span), truth)
        return int(np.count_nonzero(iou >= threshold)), float(iou.mean())

    return max(_grid(steps), key=score)  # the first of equal ones


@dataclass(frozen=True)
class TimePrior:
    """The spans of most moments in videos of about the same duration, as parts of the duration.

    `up_to_s` [bins - 1] are the durations that separate the bins, `spans` [bins, k, 2] the answers in each, best first.
    """

    up_to_s: np.ndarray
    spans: np.ndarray

    @classmethod
    def fit(
        cls,
        starts_s: np.ndarray,
        ends_s: np.ndarray,
        durations_s: np.ndarray,
        *,
        k: int = 5,
        steps: int = 20,
        max_bins: int = 4,
    ) -> "TimePrior":
        """Return the prior of training moments [N], with spans on a grid of 1/steps.

        Videos are told apart by quantiles of their duration: `max_bins` bins, or fewer with less than 50 moments a bin. The
        distribution within a bin is that of its moments, (start, end) / duration. The first span maximises the expected IoU,
        every further one the expected best IoU together with those before it; of equal ones the earlier a, then b.

        Raises ValueError where there are no moments or a duration is not positive, and as temporal_iou does.
        """
        assert k >= 1, f"{k} spans"
        durations_s = _checked_durations(durations_s)
        moments = np.stack([starts_s, ends_s], axis=1)  # [N, 2]
        temporal_iou(moments, moments)  # refuses moments that are none
        truth = moments / durations_s[:, None]
        bins = max(1, min(max_bins, len(truth) // _MOMENTS_A_BIN))
        up_to_s = np.unique(np.quantile(durations_s, np.arange(1, bins) / bins, method="inverted_cdf"))
        up_to_s = up_to_s[up_to_s < durations_s.max()]  # equal durations are of one bin, and no bin is empty
        bins_of_moments = np.searchsorted(up_to_s, durations_s)
        spans = [_covering_spans(truth[bins_of_moments == number], k, steps) for number in range(len(up_to_s) + 1)]
        return cls(up_to_s, np.array(spans))

    def predict(self, durations_s: np.ndarray) -> np.ndarray:
        """Return the moments for videos of these durations [N], float64 [N, k, 2] in seconds; NaN where it is NaN."""
        durations_s = np.asarray(durations_s, dtype=np.float64)
        spans = self.spans[np.searchsorted(self.up_to_s, np.nan_to_num(durations_s))]  # [N, k, 2]
        return durations_s[:, None, None] * spans


class NeighbourPrior:
    """The spans of most training moments that are weighted by their similarity to a query, as parts of the duration."""

    def __init__(
        self, starts_s: np.ndarray, ends_s: np.ndarray, durations_s: np.ndarray, *, neighbours: int = 100, steps: int = 20
    ) -> None:
        """Take training moments [N], and how many of them, those of the greatest weight, count for an answer.

        Raises ValueError as TimePrior.fit does.
        """
        self._durations_s = _checked_durations(durations_s)
        moments = np.stack([starts_s, ends_s], axis=1)  # [N, 2]
        temporal_iou(moments, moments)  # refuses moments that are none
        truth = moments / self._durations_s[:, None]
        self._spans = np.array(list(_grid(steps)))  # [S, 2]
        self._iou = interval_iou(self._spans[:, 0], self._spans[:, 1], truth[:, :1], truth[:, 1:]).astype(np.float32)
        self._neighbours = neighbours

    def predict(self, similarity: np.ndarray, duration_s: float, *, k: int = 5) -> np.ndarray:
        """Return the k moments in a video of this duration, best first, float64 [k, 2] in seconds.

        They are NaN if the duration is, or if no training moment is similar. `similarity` [N] is that of each training
        moment's query or video, at least 0. A moment's weight is (similarity · shorter duration / longer duration)².
        The first span maximises the weighted mean of the IoU, every further one the weighted mean of the best IoU together
        with those before it; of equal ones the earlier a, then b.
        """
        if np.isnan(duration_s):
            return np.full((k, 2), np.nan)
        ratio = duration_s / self._durations_s
        weights = (similarity * np.minimum(ratio, 1 / ratio)) ** 2
        if not weights.any():
            return np.full((k, 2), np.nan)
        most = min(self._neighbours, len(weights))
        nearest = np.sort(np.argpartition(-weights, most - 1)[:most])
        iou, weights = self._iou[nearest], weights[nearest].astype(np.float32)
        best_iou = np.zeros((len(nearest), 1), dtype=np.float32)
        answers = []
        for _ in range(k):
            index = int((weights @ np.maximum(iou, best_iou)).argmax())
            answers.append(self._spans[index])
            best_iou = np.maximum(best_iou, iou[:, index : index + 1])
        return duration_s * np.array(answers)


def _covering_spans(truth: np.ndarray, k: int, steps: int) -> list[tuple[float, float]]:
    """Return k spans, one after another those that add most to the mean over `truth` [N, 2] of the best IoU of any."""
    grid = list(_grid(steps))
    starts, ends = np.array(grid).T[:, :, None]  # [S, 1] each
    iou = interval_iou(starts, ends, truth[:, 0], truth[:, 1])  # [S, N]
    best_iou = np.zeros(len(truth))
    spans: list[tuple[float, float]] = []
    for _ in range(k):
        index = int(np.maximum(best_iou, iou).mean(axis=1).argmax())  # the first of equal ones
        spans.append(grid[index])
        best_iou = np.maximum(best_iou, iou[index])
    return spans


def _grid(steps: int) -> Iterator[tuple[float, float]]:
    """Yield the spans (a, b), 0 <= a < b <= 1, of a grid of 1/steps, by a, then by b."""
    assert steps >= 1, f"a grid of {steps} steps"
    for start in range(steps):
        for end in range(start + 1, steps + 1):
            yield start / steps, end / steps


def _checked_durations(durations_s: np.ndarray) -> np.ndarray:
    durations_s = np.asarray(durations_s, dtype=np.float64)
    if len(durations_s) == 0 or not (np.isfinite(durations_s) & (durations_s > 0)).all():
        raise ValueError(f"{len(durations_s)} durations; expected at least one, and all of them positive")
    return durations_s
