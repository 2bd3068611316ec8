"""Between the [B, S] grid and the flat row of its valid positions, so that padding costs nothing.

`Layout.tokens` [T] names the valid positions. Both directions are permutations of distinct rows,
which makes each the other's gradient; torch's own indexing would accumulate instead.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tencentpretrain.types import Layout

ROW_MULTIPLE: Final = 64
"""What depends on the data, as the numbers of valid and of supervised positions do, is filled up
with rows of zeros to a multiple of this where products are computed.

Tiles of matrix units are then full, and sizes recur: for each new one oneDNN compiles all of its
kernels in bf16 anew, which took an eighth of the steps of a small model.
"""


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, zeros: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = rows.shape[0]
        return select_rows(rows, index, zeros)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        whole = grad.new_zeros((ctx.rows, *grad.shape[1:]))
        return whole.index_copy_(0, index, grad[: len(index)]), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return rows.new_zeros((size, *rows.shape[1:])).index_copy_(0, index, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grad.index_select(0, index), None, None


def select_rows(rows: Tensor, index: Tensor, zeros: int = 0) -> Tensor:
    """Rows of `rows` [N, ...] at `index` [K] and as many `zeros` behind them, in one copy."""
    if not zeros:
        return rows.index_select(0, index)
    selected = rows.new_empty((len(index) + zeros, *rows.shape[1:]))
    torch.index_select(rows, 0, index, out=selected[: len(index)])
    selected[len(index) :].zero_()
    return selected


def take_rows(rows: Tensor, index: Tensor, zeros: int = 0) -> Tensor:
    """As `select_rows`, with gradients; rows at `index` must be distinct."""
    taken: Tensor = _Take.apply(rows, index, zeros)  # type: ignore[no-untyped-call]
    return taken


def unpad(grid: Tensor, layout: Layout) -> Tensor:
    """Valid positions [T, ...] of `grid` [B, S, ...]; all of them where there is no padding."""
    rows = grid.flatten(0, 1)
    return rows if layout.tokens is None else take_rows(rows, layout.tokens)


def pad(rows: Tensor, layout: Layout) -> Tensor:
    """Put `rows` [T, ...] back into a grid [B, S, ...] with zeros as padding."""
    if layout.tokens is not None:
        rows = _Spread.apply(rows, layout.tokens, layout.valid.numel())  # type: ignore[no-untyped-call]
    return rows.view(*layout.valid.shape, *rows.shape[1:])
