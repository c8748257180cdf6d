"""A BiLSTM over sequences of different lengths that never sees padding, as fast on a CPU as its matrices allow.

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

    A GPU runs torch's own LSTM. On a CPU that one computes gradients which nobody asked for, and multiplies padding and the
    constant at every step; `_Direction` does neither (bench/train.py has the ratio).
    """
    on_cpu = inputs.device.type == "cpu"
    if constant is not None and not on_cpu:
        inputs = torch.cat([inputs, constant[:, None].expand(-1, inputs.shape[1], -1)], dim=2)
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    if on_cpu:
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
        of_inputs, of_hidden, one_bias, other_bias = (getattr(lstm, name) for name in names)
        bias = (one_bias + other_bias).expand(len(order), -1)  # [B, 4H]; torch has two biases where one would do
        if constant is not None:
            of_inputs, of_constant = of_inputs.split([steps.shape[1], constant.shape[1]], dim=1)
            bias = bias + constant.index_select(0, order) @ of_constant.t()
        sides.append(_Direction.apply(steps, bias, of_inputs, of_hidden, sizes.tolist(), direction == 1))
    outputs, final = (torch.cat(parts, dim=1) for parts in zip(*sides, strict=True))
    return PackedSequence(outputs, sizes, order, unsorted), final.index_select(0, unsorted)


class _Direction(torch.autograd.Function):
    """One direction of an LSTM over packed sequences, with gradients by hand.

    i, f, z, o = σ, σ, tanh, σ (W x_t + U h + b);  c' = f c + i z;  h' = o tanh(c')

    The steps of all sequences are multiplied by W at once, and the gradients of W and U are one product each. Under autocast
    products are of autocast's type, all else stays float32.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  (as torch calls it)
        ctx: Any, steps: Tensor, bias: Tensor, of_steps: Tensor, of_hidden: Tensor, sizes: list[int], is_backward: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs [N, H] and the final states [B, H].

        `steps` [N, D] holds the first step of every sequence, longest first, then the second of those that have one, and so
        on: sizes[t] sequences have a step t. `bias` is [B, 4H], `of_steps` [4H, D], `of_hidden` [4H, H].
        """
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else of_steps.dtype
        hidden_size, from_hidden = of_hidden.shape[1], of_hidden.to(precision).t()
        gates = _product(steps, of_steps.t(), precision).to(of_steps.dtype)  # [N, 4H]
        hidden, cell = bias.new_zeros(2, len(bias), hidden_size)
        cells, earlier_cells, earlier_hidden, outputs = gates.new_empty(4, len(gates), hidden_size)
        ctx.chunks = _chunks(sizes, is_backward)
        for rows, count in ctx.chunks:
            state, memory, now = hidden[:count], cell[:count], gates[rows]
            earlier_hidden[rows], earlier_cells[rows] = state, memory
            now += bias[:count]
            now += state.to(precision) @ from_hidden
            now[:, : 2 * hidden_size].sigmoid_()
            now[:, 2 * hidden_size : 3 * hidden_size].tanh_()
            now[:, 3 * hidden_size :].sigmoid_()
            write, keep, new, show = now.chunk(4, dim=1)
            memory.mul_(keep).addcmul_(write, new)
            torch.mul(show, torch.tanh(memory), out=state)
            cells[rows], outputs[rows] = memory, state
        ctx.save_for_backward(steps, of_steps, of_hidden, gates, cells, earlier_cells, earlier_hidden)
        ctx.precision = precision
        return outputs, hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_outputs: Tensor, of_final: Tensor) -> tuple[Tensor | None, ...]:
        steps, of_steps, of_hidden, gates, cells, earlier_cells, earlier_hidden = ctx.saved_tensors
        write, keep, new, show = gates.chunk(4, dim=1)
        shown = torch.tanh(cells)
        # How the cell's state after a step changes with what i, f and z are the squashed values of, [N, 3, H]; and so on.
        cell_by_gates = torch.stack(
            [new * write * (1 - write), earlier_cells * keep * (1 - keep), write * (1 - new * new)], dim=1
        )
        output_by_cell, output_by_gate = show * (1 - shown * shown), shown * show * (1 - show)  # [N, H]
        slopes = torch.empty_like(gates).unflatten(1, (4, -1))  # the gradients of the gates, [N, 4, H]
        hidden, cell = of_final.clone(), torch.zeros_like(of_final)
        by_bias = of_final.new_zeros(len(of_final), gates.shape[1])
        to_hidden = of_hidden.to(ctx.precision)
        for rows, count in reversed(ctx.chunks):
            state, memory = hidden[:count], cell[:count]
            state += of_outputs[rows]
            memory.addcmul_(state, output_by_cell[rows])
            torch.mul(memory[:, None], cell_by_gates[rows], out=slopes[rows, :3])
            torch.mul(state, output_by_gate[rows], out=slopes[rows, 3])
            memory *= keep[rows]
            now = slopes[rows].flatten(1)
            by_bias[:count] += now
            state.copy_(now.to(ctx.precision) @ to_hidden)
        by_gates = slopes.flatten(1)
        by_steps = _product(by_gates, of_steps, ctx.precision).to(steps.dtype) if ctx.needs_input_grad[0] else None
        by_weights = (_product(by_gates.t(), what, ctx.precision).to(of_steps.dtype) for what in (steps, earlier_hidden))
        return by_steps, by_bias, *by_weights, None, None


def _product(left: Tensor, right: Tensor, precision: torch.dtype) -> Tensor:
    return left.to(precision) @ right.to(precision)


def _chunks(sizes: list[int], is_backward: bool) -> list[tuple[slice, int]]:
    """Return, in the order in which a direction takes them, the rows of every step and how many they are."""
    chunks, first = [], 0
    for size in sizes:
        chunks.append((slice(first, first + size), size))
        first += size
    return chunks[::-1] if is_backward else chunks
