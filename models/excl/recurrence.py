"""A BiLSTM over sequences of different lengths that never sees padding.

Letters in shapes: B sequences, T steps (padded), N steps of all sequences together, D size of a step, C size of what is
the same at every step, H hidden size of the LSTM in one direction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def bilstm(input_dim: int, hidden: int) -> nn.LSTM:
    """Return a bidirectional LSTM of one layer. Its owner adds dropout: nn.LSTM's own acts between layers only."""
    return nn.LSTM(input_dim, hidden, batch_first=True, bidirectional=True)


def run_bilstm(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor, constant: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the outputs of a BiLSTM at every step [B, T, 2H], zero in the padding, and its final states [B, 2H].

    The LSTM reads [step ; constant] for `inputs` [B, T, D] and `constant` [B, C], or the steps alone. Neither direction
    ever sees padding: the final states are those of the forward direction after the last valid step and of the backward
    direction after the first step. `lengths` is int64 [B] on the CPU, each in 1..T.

    Training on a CPU takes a way of its own, `_Direction`, whose ratio to torch's LSTM is printed by bench/train.py. Torch's
    would multiply the constant again at every step and compute gradients of inputs that need none.
    """
    trains_on_cpu = inputs.device.type == "cpu" and torch.is_grad_enabled()
    if constant is not None and not trains_on_cpu:
        inputs = torch.cat([inputs, constant[:, None].expand(-1, inputs.shape[1], -1)], dim=2)
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    if trains_on_cpu:
        outputs, final = _run_on_cpu(lstm, packed, constant)
    else:
        outputs, (last, _) = lstm(packed)
        final = torch.cat([last[0], last[1]], dim=1)  # [2, B, H] -> [B, 2H]
    return pad_packed_sequence(outputs, batch_first=True, total_length=inputs.shape[1])[0], final


def _run_on_cpu(lstm: nn.LSTM, packed: PackedSequence, constant: Tensor | None) -> tuple[PackedSequence, Tensor]:
    """Return the packed outputs [N, 2H] and the final states [B, 2H] of a BiLSTM that reads [step ; constant]."""
    steps, sizes, order, unsorted = packed
    assert order is not None, "packed in any order"
    assert unsorted is not None, "packed in any order"
    sides = []
    for direction, names in enumerate(lstm._all_weights):
        step_weights, hidden_weights, one_bias, other_bias = (getattr(lstm, name) for name in names)
        bias = (one_bias + other_bias).expand(len(order), -1)  # [B, 4H]; torch has two biases where one would do
        if constant is not None:
            step_weights, constant_weights = step_weights.split([steps.shape[1], constant.shape[1]], dim=1)
            bias = bias + constant.index_select(0, order) @ constant_weights.t()
        sides.append(_Direction.apply(steps, bias, step_weights, hidden_weights, sizes.tolist(), direction == 1))
    outputs, final = (torch.cat(parts, dim=1) for parts in zip(*sides, strict=True))
    return PackedSequence(outputs, sizes, order, unsorted), final.index_select(0, unsorted)


class _Direction(torch.autograd.Function):
    """One direction of an LSTM over packed sequences, with gradients by hand.

    i, f, z, o = σ, σ, tanh, σ (W x_t + U h + b);  c' = f c + i z;  h' = o tanh(c')

    The steps of all sequences are multiplied by W at once, and the gradients of W and U are one product each. Under
    autocast the products are of autocast's type; everything else stays float32.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  (as torch calls it)
        ctx: Any,
        steps: Tensor,
        bias: Tensor,
        step_weights: Tensor,
        hidden_weights: Tensor,
        sizes: list[int],
        is_backward: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs [N, H] and the final states [B, H].

        `steps` [N, D] holds the first step of every sequence, longest first, then the second of those that have one, and so
        on: sizes[t] sequences have a step t. `bias` is [B, 4H], `step_weights` (W) [4H, D], `hidden_weights` (U) [4H, H].
        """
        dtype = step_weights.dtype
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype
        hidden_size, turned = hidden_weights.shape[1], hidden_weights.to(precision).t()
        gates = _product(steps, step_weights.t(), precision).to(dtype)  # [N, 4H]
        hidden, cell = bias.new_zeros(2, len(bias), hidden_size)
        cells, earlier_cells, earlier_hidden, outputs = gates.new_empty(4, len(gates), hidden_size)
        ctx.chunks = _chunks(sizes, is_backward)
        for rows, count in ctx.chunks:
            h, c, now = hidden[:count], cell[:count], gates[rows]
            earlier_hidden[rows], earlier_cells[rows] = h, c
            now += bias[:count]
            now += _product(h, turned, precision)
            now[:, : 2 * hidden_size].sigmoid_()
            now[:, 2 * hidden_size : 3 * hidden_size].tanh_()
            now[:, 3 * hidden_size :].sigmoid_()
            i, f, z, o = now.chunk(4, dim=1)
            c.mul_(f).addcmul_(i, z)
            torch.mul(o, torch.tanh(c), out=h)
            cells[rows], outputs[rows] = c, h
        ctx.save_for_backward(steps, step_weights, hidden_weights, gates, cells, earlier_cells, earlier_hidden)
        ctx.precision = precision
        return outputs, hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_outputs: Tensor, of_final: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of what `forward` takes, from those of the outputs [N, H] and of the final states [B, H]."""
        steps, step_weights, hidden_weights, gates, cells, earlier_cells, earlier_hidden = ctx.saved_tensors
        i, f, z, o = gates.chunk(4, dim=1)
        shown = torch.tanh(cells)
        # Derivatives of c' by what i, f and z are squashed from, [N, 3, H]; of h' by c' and by what o is squashed from.
        cell_by_gates = torch.stack([z * i * (1 - i), earlier_cells * f * (1 - f), i * (1 - z * z)], dim=1)
        hidden_by_cell, hidden_by_gate = o * (1 - shown * shown), shown * o * (1 - o)  # [N, H]
        of_gates = torch.empty_like(gates).unflatten(1, (4, -1))  # [N, 4, H]
        of_hidden, of_cell = of_final.clone(), torch.zeros_like(of_final)
        of_bias = of_final.new_zeros(len(of_final), gates.shape[1])
        weights = hidden_weights.to(ctx.precision)
        for rows, count in reversed(ctx.chunks):
            of_h, of_c = of_hidden[:count], of_cell[:count]
            of_h += of_outputs[rows]
            of_c.addcmul_(of_h, hidden_by_cell[rows])
            torch.mul(of_c[:, None], cell_by_gates[rows], out=of_gates[rows, :3])
            torch.mul(of_h, hidden_by_gate[rows], out=of_gates[rows, 3])
            of_c *= f[rows]
            now = of_gates[rows].flatten(1)
            of_bias[:count] += now
            of_h.copy_(_product(now, weights, ctx.precision))
        flat = of_gates.flatten(1)
        of_steps = _product(flat, step_weights, ctx.precision).to(steps.dtype) if ctx.needs_input_grad[0] else None
        of_weights = (_product(flat.t(), what, ctx.precision).to(gates.dtype) for what in (steps, earlier_hidden))
        return of_steps, of_bias, *of_weights, None, None


def _product(left: Tensor, right: Tensor, precision: torch.dtype) -> Tensor:
    return left.to(precision) @ right.to(precision)


def _chunks(sizes: list[int], is_backward: bool) -> list[tuple[slice, int]]:
    """Return, in the order in which a direction takes them, the rows of every step and how many they are."""
    chunks, first = [], 0
    for size in sizes:
        chunks.append((slice(first, first + size), size))
        first += size
    return chunks[::-1] if is_backward else chunks
