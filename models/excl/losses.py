"""The training losses of ExCL: cross entropy of rows (clf) and distance of expected times (reg).

Letters in shapes: B queries of a batch, T feature rows (padded). Logits have -inf in the padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from excl.models.excl.config import Distance, ExCLConfig
from excl.models.excl.expected_times import expected_times
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")


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
