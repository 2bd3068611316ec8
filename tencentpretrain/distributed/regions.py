"""Between what the processes of a tensor axis share and what each has a part of, differentiably.

Linear layers that are cut need all positions. Between them each process works on all positions, or,
under sequence parallelism, on its slice of them (Korthikanti et al., 2022, Reducing activation
recomputation, section 4.2.2). Slices are of equal lengths: the last position is repeated where the
number of processes does not divide the others. Nobody reads what becomes of the copies.

Shapes: T positions, W processes, S = ceil(T / W) positions of a slice, D and E widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Axis:
    """Processes that compute one batch together.

    Args:
        mesh: Of one axis.
        is_sequence: Whether each has its own positions between the layers that are cut.
    """

    mesh: DeviceMesh
    is_sequence: bool = False

    @property
    def rank(self) -> int:
        """Place of this process."""
        return self.mesh.get_local_rank()

    def own(self, rows: Tensor) -> Tensor:
        """Slice [S, ...] of `rows` [T, ...]."""
        share = -(-len(rows) // self.mesh.size())
        places = torch.arange(self.rank * share, (self.rank + 1) * share, device=rows.device)
        return rows.index_select(0, places.clamp_(max=len(rows) - 1))

    def gathered(self, rows: Tensor) -> Tensor:
        """The slices `rows` [S, ...] of all processes, [W * S, ...]."""
        whole = rows.new_empty((self.mesh.size() * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(whole, rows.contiguous(), group=self.mesh.get_group())
        return whole

    def summed(self, rows: Tensor) -> Tensor:
        """`rows` [T, ...] of all processes added up."""
        total = rows.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.mesh.get_group())
        return total

    def summed_own(self, rows: Tensor) -> Tensor:
        """Slice [S, ...] of the sum of the `rows` [T, ...] of all processes, zeros behind T."""
        share = -(-len(rows) // self.mesh.size())
        padded = _padded(rows, share * self.mesh.size()).contiguous()
        total = padded.new_empty((share, *padded.shape[1:]))
        dist.reduce_scatter_tensor(total, padded, group=self.mesh.get_group())
        return total


def _padded(rows: Tensor, length: int) -> Tensor:
    """`rows` [T, D] with zeros up to `length`."""
    return rows if len(rows) == length else F.pad(rows, (0, 0, 0, length - len(rows)))


def slice_positions(states: Tensor, axis: Axis) -> Tensor:
    """Slice [S, D] of `states` [T, D] that all processes have; its gradient is that of all."""
    own: Tensor = _Slice.apply(states, axis)  # type: ignore[no-untyped-call]
    return own


def gather_positions(states: Tensor, count: int, axis: Axis) -> Tensor:
    """All `count` positions [T, D] of slices [S, D], for what all processes compute alike."""
    whole: Tensor = _Gather.apply(states, count, axis)  # type: ignore[no-untyped-call]
    return whole


def sum_parts(parts: Tensor, axis: Axis) -> Tensor:
    """The sum of `parts` [T, D] of all processes, or the slice [S, D] of it."""
    total: Tensor = _Sum.apply(parts, axis)  # type: ignore[no-untyped-call]
    return total


def project_parts(
    states: Tensor, weights: list[Tensor], biases: list[Tensor | None], axis: Axis, is_whole: bool
) -> tuple[Tensor, ...]:
    """Linear layers of which this process has some columns, over all positions: [T, E] each.

    Positions are gathered once for all of them, and again in the backward pass, so that no process
    keeps more than its slice.

    Args:
        states: [T, D], or a slice [S, D]; then the results are [W * S, E].
        weights: [E, D] each.
        biases: [E] each.
        axis: The processes.
        is_whole: Whether `states` are all positions.
    """
    projected: tuple[Tensor, ...] = _Project.apply(  # type: ignore[no-untyped-call]
        states, axis, is_whole, *weights, *biases
    )
    return projected


class _Slice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, axis: Axis) -> Tensor:
        ctx.axis, ctx.count = axis, len(states)
        return axis.own(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.axis.gathered(grad)[: ctx.count], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, count: int, axis: Axis) -> Tensor:
        ctx.axis, ctx.share = axis, len(states)
        return axis.gathered(states)[:count]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        axis, share = ctx.axis, ctx.share
        own = grad[axis.rank * share : (axis.rank + 1) * share]
        return _padded(own, share), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, axis: Axis) -> Tensor:
        ctx.axis, ctx.count = axis, len(parts)
        return axis.summed_own(parts) if axis.is_sequence else axis.summed(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        whole = ctx.axis.gathered(grad)[: ctx.count] if ctx.axis.is_sequence else grad
        return whole, None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, axis: Axis, is_whole: bool, *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, biases = _halves(parameters)
        ctx.axis, ctx.is_whole, ctx.count, ctx.dtype = axis, is_whole, len(states), states.dtype
        device = states.device.type
        if torch.is_autocast_enabled(device):
            # Once, before they are sent and kept.
            states = states.to(torch.get_autocast_dtype(device))
        whole = states if is_whole else axis.gathered(states)
        kept = axis.own(states) if is_whole and axis.is_sequence else states
        ctx.save_for_backward(kept, *weights)
        ctx.bias_types = [None if bias is None else bias.dtype for bias in biases]
        return tuple(
            F.linear(whole, weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        kept, *weights = ctx.saved_tensors
        axis, is_whole = ctx.axis, ctx.is_whole
        needs_weights, needs_biases = _halves(ctx.needs_input_grad[3:])
        of_states: Tensor | None = None
        if ctx.needs_input_grad[0]:
            for grad, weight in zip(grads, weights, strict=True):
                weight = weight.to(grad.dtype)
                of_states = grad @ weight if of_states is None else of_states.addmm_(grad, weight)
            assert of_states is not None
            of_states = axis.summed(of_states) if is_whole else axis.summed_own(of_states)
            of_states = of_states.to(ctx.dtype)
        of_weights: list[Tensor | None] = [None] * len(weights)
        if any(needs_weights):
            whole = axis.gathered(kept)[: len(grads[0])] if axis.is_sequence else kept
            of_weights = [
                (grad.t() @ whole).to(weight.dtype) if needed else None
                for grad, weight, needed in zip(grads, weights, needs_weights, strict=True)
            ]
        of_biases = [
            grad.sum(0).to(dtype) if needed else None
            for grad, dtype, needed in zip(grads, ctx.bias_types, needs_biases, strict=True)
        ]
        return of_states, None, None, *of_weights, *of_biases


def _halves(values: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    middle = len(values) // 2
    return values[:middle], values[middle:]
