"""Between flat valid positions and attention heads on the padded grid.

Shapes: B rows, S positions, T flat positions, D width, N heads, H width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tencentpretrain.layers.padding import ROW_MULTIPLE, pad, select_rows, take_rows
from tencentpretrain.types import Layout


class HeadGrid:
    """Splits states [T, D] into `heads` on the grid of `layout`, and merges them back.

    Each way is one copy of head-sized pieces, made with indices that all layers share. Padding
    holds a copy of the first valid position: a key there is never seen and a query there never
    read, so no gradient comes back from it.

    The T flat positions are the valid ones and, behind them, rows that fill them up to a multiple
    (`ROW_MULTIPLE`). Those are zeros at first and never come into the grid.
    """

    def __init__(self, layout: Layout, heads: int) -> None:
        self.layout = layout
        self.heads = heads
        self.rows, self.length = layout.valid.shape
        tokens = layout.tokens
        self.filling = 0 if tokens is None else -len(tokens) % ROW_MULTIPLE
        self.count = layout.count + self.filling
        if tokens is None:
            return
        head = torch.arange(heads, device=tokens.device)
        row, position = tokens // self.length, tokens % self.length
        place = torch.zeros_like(layout.valid, dtype=torch.int64)
        place[row, position] = torch.arange(len(tokens), device=tokens.device)
        self._source = (place[:, None] * heads + head[:, None]).flatten()
        self._target = ((row[:, None] * heads + head) * self.length + position[:, None]).flatten()

    def flatten(self, hidden: Tensor) -> Tensor:
        """Flat states [T, D] of `hidden` [B, S, D]."""
        rows, tokens = hidden.flatten(0, 1), self.layout.tokens
        return rows if tokens is None else take_rows(rows, tokens, self.filling)

    def unpad(self, hidden: Tensor) -> Tensor:
        """Those flat states of `hidden` [B, S, D] that this process computes: all [T, D]."""
        return self.flatten(hidden)

    def pad(self, states: Tensor) -> Tensor:
        """States [B, S, D] of flat ones [T, D]."""
        return pad(states[: self.layout.count], self.layout)

    def split(self, states: Tensor) -> Tensor:
        """Heads [B, N, S, H] of `states` [T, D]."""
        size = states.shape[1] // self.heads
        if self.layout.tokens is None:
            return states.view(self.rows, self.length, self.heads, size).transpose(1, 2)
        indices, zeros = (self._source, self._target), self.filling * self.heads
        pieces: Tensor = _Spread.apply(states.view(-1, size), *indices, zeros)  # type: ignore[no-untyped-call]
        return pieces.view(self.rows, self.heads, self.length, size)

    def by_row(self, values: Tensor) -> Tensor:
        """The value of `values` [B] that belongs to each of the T positions; 0 for filling."""
        tokens = self.layout.tokens
        if tokens is None:
            return values.repeat_interleave(self.length, output_size=self.rows * self.length)
        return F.pad(values[tokens // self.length], (0, self.filling))

    def merge(self, pieces: Tensor) -> Tensor:
        """States [T, D] of heads [B, N, S, H]."""
        if self.layout.tokens is None:
            return pieces.transpose(1, 2).flatten(2).flatten(0, 1)
        flat, zeros = pieces.reshape(-1, pieces.shape[-1]), self.filling * self.heads
        return take_rows(flat, self._target, zeros).view(self.count, -1)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pieces: Tensor, source: Tensor, target: Tensor, zeros: int) -> Tensor:
        ctx.save_for_backward(target)
        ctx.zeros = zeros
        return pieces.index_select(0, source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (target,) = ctx.saved_tensors
        return select_rows(grad, target, ctx.zeros), None, None, None
