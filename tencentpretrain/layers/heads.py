"""Between flat valid positions and attention heads on the padded grid.

Shapes: B rows, S positions, T flat positions, D width, N heads, H width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tencentpretrain.layers.padding import ROW_MULTIPLE, pad, take_rows
from tencentpretrain.types import Layout


class HeadGrid:
    """Splits states [T, D] into `heads` on the grid of `layout`, and merges them back.

    Each way is one copy of head-sized pieces, made with indices that all layers share. Padding
    holds a copy of the first valid position: a key there is never seen and a query there never
    read, so no gradient comes back from it.

    The T flat positions are the valid ones and, behind them, maybe some padded ones that fill them
    up to a multiple (`ROW_MULTIPLE`); nothing that is seen depends on those, and `pad` leaves them
    out.
    """

    def __init__(self, layout: Layout, heads: int) -> None:
        self.layout = layout
        self.heads = heads
        self.rows, self.length = layout.valid.shape
        self.tokens = tokens = _filled(layout)
        self.count = layout.valid.numel() if tokens is None else len(tokens)
        if tokens is None:
            return
        head = torch.arange(heads, device=tokens.device)
        row, position = tokens // self.length, tokens % self.length
        place = torch.zeros_like(layout.valid, dtype=torch.int64)
        place[row, position] = torch.arange(len(tokens), device=tokens.device)
        self._source = (place[:, None] * heads + head[:, None]).flatten()
        self._target = ((row[:, None] * heads + head) * self.length + position[:, None]).flatten()

    def unpad(self, hidden: Tensor) -> Tensor:
        """Flat states of `hidden` [B, S, D], as blocks take them."""
        return self.flatten(hidden)

    def flatten(self, hidden: Tensor) -> Tensor:
        """Flat states [T, D] of `hidden` [B, S, D]."""
        rows = hidden.flatten(0, 1)
        return rows if self.tokens is None else take_rows(rows, self.tokens)

    def pad(self, states: Tensor) -> Tensor:
        """States [B, S, D] of flat ones [T, D]."""
        return pad(states[: self.layout.count], self.layout)

    def split(self, states: Tensor) -> Tensor:
        """Heads [B, N, S, H] of `states` [T, D]."""
        size = states.shape[1] // self.heads
        if self.tokens is None:
            return states.view(self.rows, self.length, self.heads, size).transpose(1, 2)
        pieces: Tensor = _Spread.apply(states.view(-1, size), self._source, self._target)  # type: ignore[no-untyped-call]
        return pieces.view(self.rows, self.heads, self.length, size)

    def by_row(self, values: Tensor) -> Tensor:
        """The value of `values` [B] that belongs to each of the T positions."""
        if self.tokens is None:
            return values.repeat_interleave(self.length, output_size=self.rows * self.length)
        return values[self.tokens // self.length]

    def merge(self, pieces: Tensor) -> Tensor:
        """States [T, D] of heads [B, N, S, H]."""
        if self.tokens is None:
            return pieces.transpose(1, 2).flatten(2).flatten(0, 1)
        rows = take_rows(pieces.reshape(-1, pieces.shape[-1]), self._target)
        return rows.view(self.count, -1)


def _filled(layout: Layout) -> Tensor | None:
    """`layout.tokens`, and behind them padded positions up to a multiple of `ROW_MULTIPLE`."""
    tokens, cells = layout.tokens, layout.valid.flatten()
    if tokens is None or len(tokens) % ROW_MULTIPLE == 0:
        return tokens
    count = min(-(-len(tokens) // ROW_MULTIPLE) * ROW_MULTIPLE, len(cells))
    # Sorting needs no answer from the device, as finding padded positions would.
    return cells.logical_not().argsort(stable=True)[:count]


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pieces: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(target)
        return pieces.index_select(0, source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (target,) = ctx.saved_tensors
        return grad.index_select(0, target), None, None
