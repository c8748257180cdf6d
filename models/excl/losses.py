"""The training loss of ExCL's classification variants."""

import torch.nn.functional as F
from torch import Tensor


def span_cross_entropy(start_logits: Tensor, end_logits: Tensor, start_rows: Tensor, end_rows: Tensor) -> Tensor:
    """Return -1/B sum_i [log P_start(start_i) + log P_end(end_i)], a float32 scalar (equation 1, brackets as meant).

    Logits are [B, T] with -inf in the padding, rows are int64 [B]. The two softmaxes are independent: that a span
    must not end before it starts enters in decoding only. A target row in the padding makes the loss infinite.
    """
    return F.cross_entropy(start_logits.float(), start_rows) + F.cross_entropy(end_logits.float(), end_rows)
