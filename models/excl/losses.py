"""The training losses of ExCL: cross entropy of rows (clf) and distance of expected times (reg).

Letters in shapes: B queries of a batch, T feature rows (padded). Logits have -inf in the padding.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from excl.models.excl.config import Distance, ExCLConfig

_NEVER = -1e30
"""The logarithm of no probability. Finite, so that gradients are: those of logcumsumexp are NaN at -inf."""


@dataclass(frozen=True)
class Targets:
    """The targets of a batch in training.

    start_rows and end_rows, int64 [B], stand for the annotated moments; starts and ends, float32 [B], are the moments'
    times, row_starts and row_ends, float32 [B, T], those of the rows, finite in the padding too: shares of the duration.
    """

    start_rows: Tensor
    end_rows: Tensor
    starts: Tensor
    ends: Tensor
    row_starts: Tensor
    row_ends: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the targets on a device."""
        return type(self)(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def span_loss(config: ExCLConfig, start_logits: Tensor, end_logits: Tensor, targets: Targets) -> Tensor:
    """Return the loss that the configuration asks for, a float32 scalar: equation 1 (clf) or that of equations 5-8 (reg)."""
    if config.parts.loss == "clf":
        return span_cross_entropy(start_logits, end_logits, targets.start_rows, targets.end_rows)
    return span_distance(start_logits, end_logits, targets, distance=config.reg_distance)


def span_cross_entropy(start_logits: Tensor, end_logits: Tensor, start_rows: Tensor, end_rows: Tensor) -> Tensor:
    """Return -1/B sum_i [log P_start(start_i) + log P_end(end_i)], a float32 scalar (equation 1, brackets as meant).

    Logits are [B, T] with -inf in the padding, rows are int64 [B]. The two softmaxes are independent: that a span
    must not end before it starts enters in decoding only. A target row in the padding makes the loss infinite.
    """
    return F.cross_entropy(start_logits.float(), start_rows) + F.cross_entropy(end_logits.float(), end_rows)


def span_distance(start_logits: Tensor, end_logits: Tensor, targets: Targets, *, distance: Distance) -> Tensor:
    """Return how far the expected times of equations 5-8 are from the annotated ones, a float32 scalar.

    That is 1/B sum_i [d(E[start]_i, starts_i) + d(E[end]_i, ends_i)], d the absolute (l1) or the squared (mse) difference.
    """
    start, end = expected_times(start_logits, end_logits, targets.row_starts, targets.row_ends)
    difference = F.l1_loss if distance == "l1" else F.mse_loss
    return difference(start, targets.starts.to(start)) + difference(end, targets.ends.to(end))


def expected_times(start_logits: Tensor, end_logits: Tensor, row_starts: Tensor, row_ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[start] and E[end] of the spans, [B] each, in the unit of the rows' times, in float32 or better.

    E[start] = sum_s P_start(s) row_starts(s)                             (5)
    P(e | s) = softmax of the end logits over the rows e >= s             (6)
    E[end] = sum_s P_start(s) sum_{e >= s} P(e | s) row_ends(e)           (7, 8; the factor of time that 8 omits is there)

    Rows before s get no probability at all (printed as 1[e >= s] S_end(e) within the softmax, which would leave them e^0).
    Linear in T: the sums are exchanged, P(end = e) = exp(S_end(e)) sum_{s <= e} P_start(s) / Z(s), and kept as logarithms.
    E[start] <= E[end] where no row ends before it starts and rows are in order. Times are [B, T], finite in the padding.
    """
    return expected_of_scores(start_logits, *conditional_scores(start_logits, end_logits), row_starts, row_ends)


def expected_of_scores(
    start_logits: Tensor, start_scores: Tensor, end_scores: Tensor, row_starts: Tensor, row_ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what `expected_times` does, from conditional scores that were computed before."""
    log_start = start_logits.to(start_scores.dtype).log_softmax(1)
    log_end = end_scores + start_scores.logcumsumexp(1)
    return (log_start.exp() * row_starts).sum(1), (log_end.exp() * row_ends).sum(1)


def conditional_scores(start_logits: Tensor, end_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and E, both [B, T] and finite, with log P_start(s) + log P(e | s) = A(s) + E(e) for s <= e (equation 6).

    A(s) = log P_start(s) - log Z(s), Z(s) = sum_{e >= s} exp(S_end(e)), and E = S_end. Both are far below every logarithm of
    a probability in the padding. float32, also of half-precision logits, or float64 if the logits are.
    """
    dtype = torch.promote_types(start_logits.dtype, torch.float32)
    padding = torch.isneginf(start_logits)
    end_scores = end_logits.to(dtype).masked_fill(padding, _NEVER)
    log_norm = end_scores.flip(1).logcumsumexp(1).flip(1)  # log Z
    start_scores = start_logits.to(dtype).log_softmax(1) - log_norm
    return start_scores.masked_fill(padding, _NEVER), end_scores
