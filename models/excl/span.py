"""The best span of logits, and from feature rows to seconds and back: the one place where these are converted.

Letters in shapes: B queries of a batch, T feature rows (padded), n feature rows of one video. A span is a start row and
an end row, both inclusive. Row k covers the seconds from row_start_s[k] to row_end_s[k].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


def best_span(start_logits: Tensor, end_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most probable spans with start <= end: start rows and end rows, int64 [B], and P, float32 [B].

    P is the joint probability P_start(start) P_end(end) of two independent softmaxes (equations 2 to 4, the inference of
    the classification variants). Logits are [B, T] with -inf at the rows to leave out. Linear in T. Among equal spans
    the one that ends first wins, then the one that starts first.

    Raises ValueError where a query has no row to choose, or logits that are NaN or infinite.
    """
    if start_logits.shape[1] == 0:
        raise ValueError("no feature rows to choose a span from")
    start, end = start_logits.double(), end_logits.double()  # in float32, rounding their sums would make ties
    best_start = start.cummax(dim=1).values  # [B, T], the best start at or before each row
    joint, end_rows = (best_start + end).max(dim=1)  # the first of equal ends
    if not torch.isfinite(joint).all():
        query = int((~torch.isfinite(joint)).nonzero()[0])
        raise ValueError(f"query {query} of the batch: best span scores {joint[query]:g}; expected finite logits")
    # The first row that reaches the best start; cummax's own indices leave open which of equal rows they name.
    reaches = start == best_start.gather(1, end_rows[:, None])  # [B, T]
    start_rows = reaches.int().argmax(dim=1)
    log_p = joint - start.logsumexp(dim=1) - end.logsumexp(dim=1)
    return start_rows, end_rows, log_p.exp().float()


def moment_to_rows(start_s: float, end_s: float, row_start_s: np.ndarray, row_end_s: np.ndarray) -> tuple[int, int]:
    """Return the span (start row, end row) that stands for a moment of a video, for training on it.

    The start row is the one that starts nearest to start_s, the end row the one that ends nearest to end_s; where two
    are equally near, the earlier. Where that puts the end before the start (a moment shorter than a row) both are the
    row that overlaps the moment most, or comes nearest to it where none does; the first of equal ones.

    `row_start_s` and `row_end_s` are float64 [n], ascending; rows may leave gaps or overlap. Binary search.
    Raises ValueError for a video without rows and for a moment that is not finite or ends before it starts.
    """
    if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s <= end_s):
        raise ValueError(f"moment from {start_s} s to {end_s} s; expected finite times, the start not after the end")
    if len(row_start_s) == 0:
        raise ValueError(f"moment from {start_s} s to {end_s} s: its video has no feature rows")
    assert len(row_start_s) == len(row_end_s), f"{len(row_start_s)} row starts, {len(row_end_s)} row ends"
    start_row, end_row = _nearest(row_start_s, start_s), _nearest(row_end_s, end_s)
    if end_row < start_row:
        overlap_s = np.minimum(row_end_s, end_s) - np.maximum(row_start_s, start_s)  # negative: how far apart
        start_row = end_row = int(overlap_s.argmax())
    return start_row, end_row


def _nearest(edges_s: np.ndarray, time_s: float) -> int:
    """Return the index of the edge nearest to a time; the first of equally near ones. Edges are ascending."""
    after = int(np.searchsorted(edges_s, time_s))  # the first edge at or after the time
    if after == 0:
        return 0
    before_s = edges_s[after - 1]
    if after < len(edges_s) and edges_s[after] - time_s < time_s - before_s:
        return after
    return int(np.searchsorted(edges_s, before_s))  # the first of edges that coincide


def rows_to_moment(start_row: int, end_row: int, row_start_s: np.ndarray, row_end_s: np.ndarray) -> tuple[float, float]:
    """Return the seconds (start_s, end_s) that a span covers: where its first row starts and its last row ends."""
    assert 0 <= start_row <= end_row < len(row_end_s), f"rows {start_row}..{end_row} of {len(row_end_s)}"
    return float(row_start_s[start_row]), float(row_end_s[end_row])
