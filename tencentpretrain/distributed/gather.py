"""Rows of all processes together, with gradients that find their way back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from tencentpretrain.errors import TrainingError


def gather_rows(rows: Tensor) -> Tensor:
    """`rows` [B, ...] of all processes, in the order of their ranks [W * B, ...].

    The gradient of a row is the sum of what all processes make of it. With one process it is the
    identity.

    Raises:
        TrainingError: if processes have different numbers of rows.
    """
    if not _are_several():
        return rows
    if rows.device.type == "cpu":  # elsewhere the host would wait for the device in every step
        _require_equal(len(rows))
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def _require_equal(count: int) -> None:
    counts = torch.full((dist.get_world_size(),), count)
    dist.all_gather_into_tensor(counts, counts[:1].clone())
    found = counts.tolist()
    if len(set(found)) > 1:
        raise TrainingError(
            f"all processes must have as many rows to compare them, but they have {found}; choose "
            "a batch size that the number of processes divides"
        )


def first_row(rows: Tensor) -> int:
    """Place of the first of this process's `rows` in what `gather_rows` makes of them."""
    return dist.get_rank() * len(rows) if _are_several() else 0


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        gathered = rows.new_empty((dist.get_world_size() * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Of gloo, only the sum over all rows exists on every device.
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        share = len(grad) // dist.get_world_size()
        return grad[dist.get_rank() * share :][:share]
