"""The expected start and end of a query in linear time: what regression trains on and answers (equations 5 to 8).

Letters in shapes: B queries of a batch, T feature rows (padded). Logits have -inf in the padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

_NEVER = -1e30
"""The logarithm of no probability. Finite, so that gradients are: those of logcumsumexp are NaN at -inf."""


def expected_times(start_logits: Tensor, end_logits: Tensor, row_starts: Tensor, row_ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[start] and E[end] of the spans, [B] each, in the unit of the rows' times, in float32 or better.

    E[start] = sum_s P_start(s) row_starts(s)                             (5)
    P(e | s) = softmax of the end logits over the rows e >= s             (6)
    E[end] = sum_s P_start(s) sum_{e >= s} P(e | s) row_ends(e)           (7, 8; the factor of time that 8 omits is there)

    Rows before s get no probability at all (printed as 1[e >= s] S_end(e) within the softmax, which would leave them e^0).
    Linear in T: the sums are exchanged, P(end = e) = exp(S_end(e)) sum_{s <= e} P_start(s) / Z(s), and kept as logarithms.
    E[start] <= E[end] where no row ends before it starts and rows are in order. Times are [B, T], finite in the padding.
    """
    return expected_times_of_scores(start_logits, *conditional_scores(start_logits, end_logits), row_starts, row_ends)


def expected_times_of_scores(
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
