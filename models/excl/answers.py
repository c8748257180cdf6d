"""The moments of logits: the best span and those next to it (clf), or the expected times (reg), in seconds.

Letters in shapes: B queries of a batch, T feature rows (padded), n feature rows of one video. A span is a start row and an
end row, both inclusive; span.py tells which seconds it stands for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from excl.models.excl.config import Loss
from excl.models.excl.expected_times import conditional_scores, expected_times_of_scores
from excl.models.excl.metrics import interval_iou
from excl.models.excl.span import best_span, moment_to_rows, rows_to_moment
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

MAX_IOU = 0.5
"""The largest IoU that two moments of an answer may have by default (temporal non-maximum suppression)."""

_BLOCK_ROWS = 64
"""End rows that are searched at once for the next best span: memory is about 64 n values, however long the video."""


class RowTimes(NamedTuple):
    """The seconds that each row of a video covers: float64 [n] each, ascending."""

    start_s: np.ndarray
    end_s: np.ndarray


def decode(
    start_logits: Tensor,
    end_logits: Tensor,
    row_times: Sequence[RowTimes],
    *,
    loss: Loss,
    k: int = 1,
    max_iou: float = MAX_IOU,
) -> np.ndarray:
    """Return up to k moments for every query, best first: start_s, end_s, P, float64 [B, k, 3], NaN where there are fewer.

    Logits are [B, T] with -inf in the padding; `row_times` has those of every query's video.
    clf: the spans that `top_spans` finds by P_start(s) P_end(e), of which the first is the argmax over s <= e (equation 4).
    reg: the first moment is the expected one (equations 5-8), its P that of the span nearest to it. After it come the spans
    that `top_spans` finds by P_start(s) P(e | s), apart from the first.

    Raises ValueError as best_span and top_spans do.
    """
    start_logits, end_logits = start_logits.cpu().double(), end_logits.cpu().double()  # not every device has float64
    assert k >= 1, f"{k} moments"
    start_rows, end_rows, _ = best_span(start_logits, end_logits)  # refuses logits that are not finite, whatever the loss
    expected: list[tuple[float, float]] = []
    if loss == "clf":
        start_scores, end_scores = start_logits, end_logits
        log_norm = start_logits.logsumexp(1) + end_logits.logsumexp(1)
    else:
        start_scores, end_scores = conditional_scores(start_logits, end_logits)
        log_norm = torch.zeros(len(start_logits))
        expected = _expected_moments(start_logits, (start_scores, end_scores), row_times)
    moments = np.full((len(start_logits), k, 3), np.nan)
    for query, times in enumerate(row_times):
        expectation, num_rows = expected[query : query + 1], len(times.start_s)
        scores = start_scores[query, :num_rows].numpy(), end_scores[query, :num_rows].numpy()
        spans = [] if expectation else [(int(start_rows[query]), int(end_rows[query]))]
        if k > 1:
            spans = top_spans(*scores, times, k=k - len(expectation), max_iou=max_iou, apart_from=expectation)
        answers = [(moment, moment_to_rows(*moment, *times)) for moment in expectation]
        answers += [(rows_to_moment(*span, *times), span) for span in spans]
        for rank, (moment, (start_row, end_row)) in enumerate(answers):
            log_p = scores[0][start_row] + scores[1][end_row] - float(log_norm[query])
            moments[query, rank] = *moment, math.exp(log_p)
    return moments


def _expected_moments(
    start_logits: Tensor, scores: tuple[Tensor, Tensor], row_times: Sequence[RowTimes]
) -> list[tuple[float, float]]:
    """Return E[start] and E[end] of every query in seconds, from its conditional scores."""
    times = torch.zeros(2, *start_logits.shape, dtype=torch.float64)  # of rows, [2, B, T]
    for query, video_times in enumerate(row_times):
        times[:, query, : len(video_times.start_s)] = torch.from_numpy(np.stack(video_times))
    starts_s, ends_s = (expected.tolist() for expected in expected_times_of_scores(start_logits, *scores, *times))
    return [(start_s, max(start_s, end_s)) for start_s, end_s in zip(starts_s, ends_s, strict=True)]  # up to rounding


def row_probabilities(start_logits: Tensor, end_logits: Tensor, *, loss: Loss) -> tuple[np.ndarray, np.ndarray]:
    """Return for every row the probabilities of a start and of an end there, float64 [B, T] each, 0 in the padding.

    clf: the two softmaxes (equations 2 and 3). reg: P_start(s), and P(e) = sum_{s <= e} P_start(s) P(e | s) (equation 8).
    """
    start_logits, end_logits = start_logits.cpu().double(), end_logits.cpu().double()
    log_start, log_end = start_logits.log_softmax(1), end_logits.log_softmax(1)
    if loss != "clf":
        start_scores, end_scores = conditional_scores(start_logits, end_logits)
        log_end = end_scores + start_scores.logcumsumexp(1)
    return log_start.exp().numpy(), log_end.exp().numpy()


def top_spans(
    start_scores: np.ndarray,
    end_scores: np.ndarray,
    row_times: RowTimes,
    *,
    k: int,
    max_iou: float = MAX_IOU,
    apart_from: Sequence[tuple[float, float]] = (),
) -> list[tuple[int, int]]:
    """Return the k spans (start row <= end row) with the highest start_scores[start] + end_scores[end] that differ enough.

    One after another: the best span whose IoU, in seconds, with every one before it and with every moment (start_s, end_s)
    in `apart_from` is at most `max_iou`. Among equal ones that which ends first, then that which starts first. Fewer than k
    where no more are left. All spans are searched, in time n squared at worst and in memory proportional to n.

    Raises ValueError for scores that are NaN or infinite and for numbers out of range.
    """
    if k < 1 or not 0 <= max_iou <= 1:
        raise ValueError(f"{k} spans of IoU at most {max_iou}; expected at least one span and a number from 0 to 1")
    if not (np.isfinite(start_scores).all() and np.isfinite(end_scores).all()):
        raise ValueError(f"the scores of {len(start_scores)} feature rows are not all finite")
    search = _Search(start_scores, end_scores, row_times, max_iou)
    chosen: list[tuple[int, int]] = []
    moments = list(apart_from)
    while len(chosen) < k:
        span = search.best(chosen, moments)
        if span is None:
            break
        chosen.append(span)
        moments.append(rows_to_moment(*span, *row_times))
    return chosen


@dataclass(frozen=True)
class _Search:
    """The search among all spans of one video, block by block of end rows."""

    start_scores: np.ndarray
    end_scores: np.ndarray
    row_times: RowTimes
    max_iou: float

    def best(self, chosen: Sequence[tuple[int, int]], moments: Sequence[tuple[float, float]]) -> tuple[int, int] | None:
        """Return the best span that was not chosen and does not overlap a moment too much, or None."""
        highest = np.maximum.accumulate(self.start_scores) + self.end_scores  # [n], what a span ending there can reach
        blocks = [slice(begin, begin + _BLOCK_ROWS) for begin in range(0, len(highest), _BLOCK_ROWS)]
        best: tuple[float, int, int] | None = None  # score, -end row, -start row: the greatest wins
        for block in sorted(blocks, key=lambda block: highest[block].max(), reverse=True):
            if best is not None and highest[block].max() < best[0]:
                break  # nor can the blocks after it
            candidate = self._best_of_block(np.arange(len(highest))[block], chosen, moments)
            if candidate is not None and (best is None or candidate > best):
                best = candidate
        return None if best is None else (-best[2], -best[1])

    def _best_of_block(
        self, end_rows: np.ndarray, chosen: Sequence[tuple[int, int]], moments: Sequence[tuple[float, float]]
    ) -> tuple[float, int, int] | None:
        start_rows, end_rows = np.arange(end_rows[-1] + 1), end_rows[:, None]  # [S], [E, 1]
        starts_s, ends_s = self.row_times.start_s[start_rows], self.row_times.end_s[end_rows]
        free = start_rows <= end_rows  # [E, S]
        for start_s, end_s in moments:
            free &= interval_iou(starts_s, ends_s, start_s, end_s) <= self.max_iou
        for span in chosen:  # rows without length have IoU 0 even with themselves
            free &= (start_rows != span[0]) | (end_rows != span[1])
        scores = np.where(free, self.start_scores[start_rows] + self.end_scores[end_rows], -np.inf)
        row, start_row = divmod(int(scores.argmax()), len(start_rows))  # of equal ones the first
        return (float(scores[row, start_row]), -int(end_rows[row, 0]), -start_row) if free[row, start_row] else None
