"""The layers of ExCL's encoders and predictors beside their BiLSTMs: dropout, self-attention that never sees padding.

Letters in shapes: B items of a batch, T steps (padded), D size of a step.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """nn.Dropout, but on a CPU it compares uniform numbers, which torch draws four times as fast as bits without MKL.

    That is the case on AMD processors. What is dropped depends on torch's seed alone, not on the number of threads.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.device.type != "cpu" or not self.training or self.p == 0:
            return super().forward(inputs)
        mask = torch.rand(inputs.shape) >= self.p
        return inputs * mask.to(inputs.dtype).div_(1 - self.p)


def linear_of_joint(layer: nn.Linear, *parts: Tensor) -> Tensor:
    """Return layer([part ; part ; ...]), [B, T, out], of parts [B, T, size], without putting them together.

    A part may be [B, 1, size], the same for all steps: it is then multiplied once instead of T times.
    """
    weights = layer.weight.split([part.shape[2] for part in parts], dim=1)
    products = [F.linear(part, weight) for part, weight in zip(parts, weights, strict=True)]
    return sum(products, start=layer.bias)


def valid_steps(lengths: Tensor, inputs: Tensor) -> Tensor:
    """Return bool [B, T], True at the first `lengths` (int64 [B]) steps of `inputs` [B, T, ...], on its device."""
    steps = torch.arange(inputs.shape[1], device=inputs.device)
    return steps < lengths.to(inputs.device, non_blocking=True)[:, None]  # else a GPU would be waited for


def positions(inputs: Tensor) -> Tensor:
    """Return a code for every step of `inputs` [B, T, D], D even: float32 [T, D], sines and cosines of its number.

    Their wavelengths go from 2 pi to 20,000 pi steps (Vaswani et al., 2017, section 3.5), so there is no longest input.
    """
    steps = torch.arange(inputs.shape[1], device=inputs.device, dtype=torch.float32)
    pairs = torch.arange(0, inputs.shape[2], 2, device=inputs.device, dtype=torch.float32)
    angles = steps[:, None] * torch.exp(pairs * (-math.log(10_000.0) / inputs.shape[2]))  # [T, D / 2]
    return torch.cat([angles.sin(), angles.cos()], dim=1)  # [T, D]


class SelfAttention(nn.Module):
    """One transformer layer (pre-norm) over the steps of a sequence, which it tells apart by position codes."""

    def __init__(self, input_dim: int, size: int, *, heads: int, dropout: float) -> None:
        """Take steps of `input_dim` values and make them `size` values, even and a multiple of the heads."""
        super().__init__()
        assert size % 2 == 0, f"{size} values for pairs of sine and cosine"
        assert size % heads == 0, f"{size} values for {heads} heads"
        self.heads = heads
        self.project = nn.Linear(input_dim, size)
        self.norm = nn.LayerNorm(size)
        self.queries_keys_values = nn.Linear(size, 3 * size)
        self.merge = nn.Linear(size, size)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.ReLU(), nn.Linear(2 * size, size)
        )
        self.dropout = Dropout(dropout)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return [B, T, size] for inputs [B, T, input_dim] whose first `lengths` (int64 [B]) steps count."""
        steps = self.project(inputs)  # [B, T, D]
        steps = steps + positions(steps)
        heads = self.queries_keys_values(self.norm(steps)).unflatten(2, (3, self.heads, -1))  # [B, T, 3, heads, d]
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, T, d]
        seen = valid_steps(lengths, inputs)[:, None, None]  # [B, 1, 1, T]: padding is no key for any step
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        merged = attended.transpose(1, 2).flatten(2)  # [B, heads, T, d] -> [B, T, D]
        steps = steps + self.dropout(self.merge(merged))
        return steps + self.dropout(self.feed_forward(steps))
