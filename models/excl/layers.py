"""The layers of ExCL's encoders and predictors: BiLSTMs and self-attention that never see padding, dropout.

Letters in shapes: B items of a batch, T steps (padded), D size of a step, H hidden size of an LSTM in one direction.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def bilstm(input_dim: int, hidden: int) -> nn.LSTM:
    """Return a bidirectional LSTM of one layer. Its owner adds dropout: nn.LSTM's own acts between layers only."""
    return nn.LSTM(input_dim, hidden, batch_first=True, bidirectional=True)


def run_packed(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of a BiLSTM at every step [B, T, 2H], zero in the padding, and its final states [B, 2H].

    Neither direction ever sees padding, because the sequences are packed. The final states are those of the forward
    direction after the last valid step and of the backward direction after the first step. `inputs` is [B, T, D];
    `lengths` is int64 [B] on the CPU, each in 1..T.

    torch's CPU code takes packed sequences step by step, padded ones all at once (bench/train.py), so there the backward
    direction gets every sequence reversed within its own length instead, which keeps padding behind it.
    """
    if inputs.device.type == "cpu":
        return _run_reversed(lstm, inputs, lengths)
    return _run_packed(lstm, inputs, lengths)


def _run_packed(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return what run_packed does, by torch's packing, as a GPU does it best."""
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    packed_outputs, (final, _) = lstm(packed)
    outputs, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=inputs.shape[1])
    return outputs, torch.cat([final[0], final[1]], dim=1)  # [2, B, H] -> [B, 2H]


def _run_reversed(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return what run_packed does, of a BiLSTM of one layer, without packing."""
    forward = _run_direction(lstm, 0, inputs)  # [B, T, H]
    backward = mirror(_run_direction(lstm, 1, mirror(inputs, lengths)), lengths)
    last_steps = (lengths - 1)[:, None, None].expand(-1, 1, lstm.hidden_size)
    final = torch.cat([forward.gather(1, last_steps)[:, 0], backward[:, 0]], dim=1)  # [B, 2H]
    padding = ~valid_steps(lengths, inputs)[..., None]  # [B, T, 1]
    return torch.cat([forward, backward], dim=2).masked_fill_(padding, 0.0), final


def _run_direction(lstm: nn.LSTM, direction: int, inputs: Tensor) -> Tensor:
    weights = [getattr(lstm, name) for name in lstm._all_weights[direction]]
    zeros = inputs.new_zeros(1, len(inputs), lstm.hidden_size)
    return torch.lstm(inputs, (zeros, zeros), weights, True, 1, 0.0, lstm.training, False, True)[0]


def mirror(values: Tensor, lengths: Tensor) -> Tensor:
    """Return `values` [B, T, D], on a CPU, with the first `lengths` (int64 [B]) steps in reverse, the others unmoved."""
    steps = torch.arange(values.shape[1])  # [T]
    sources = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)  # [B, T]
    offsets = torch.arange(len(values))[:, None] * values.shape[1]  # [B, 1]
    mirrored: Tensor = _Permute.apply(values, (offsets + sources).flatten())
    return mirrored


class _Permute(torch.autograd.Function):
    """The values [B, T, D] with step i of all B T copied from step order[i], where `order`, int64 [B T], is its own inverse.

    So gradients take the same way. Autograd, which cannot know that, would add them up one number at a time.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return values.flatten(0, 1).index_select(0, order).view(values.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return gradient.flatten(0, 1).index_select(0, order).view(gradient.shape), None


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
