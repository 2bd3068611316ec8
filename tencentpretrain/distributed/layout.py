"""Which part of a tensor lies on this process.

Tensors that several processes share are torch's `DTensor`s: every process has one box of the
whole, given by where it starts and how long it is along each axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    # Its import takes half a second, which commands on one process need not wait for.
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Box:
    """A part of a tensor.

    Args:
        start: First index along each axis.
        shape: Length along each axis.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: torch.Size | tuple[int, ...]) -> Box:
        """All of a tensor of `shape`."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def end(self) -> tuple[int, ...]:
        """Index behind the last along each axis."""
        return tuple(a + n for a, n in zip(self.start, self.shape, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """What indexes the whole tensor."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.end, strict=True))

    @property
    def is_empty(self) -> bool:
        return 0 in self.shape

    def overlap(self, other: Box) -> Box:
        """What both have in common."""
        start = tuple(map(max, self.start, other.start))
        ends = tuple(map(min, self.end, other.end))
        return Box(start, tuple(max(0, b - a) for a, b in zip(start, ends, strict=True)))

    def within(self, other: Box) -> Box:
        """The same part, counted from where `other` starts."""
        return Box(tuple(a - b for a, b in zip(self.start, other.start, strict=True)), self.shape)


def is_shared(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether `tensor` is one of several processes."""
    return hasattr(tensor, "placements")


def cut_axes(tensor: DTensor) -> list[tuple[int, int]]:
    """Axes of the mesh that cut `tensor`, and the dimension that each of them cuts."""
    dims = ((axis, getattr(p, "dim", None)) for axis, p in enumerate(tensor.placements))
    return [(axis, dim) for axis, dim in dims if dim is not None]


def local_part(tensor: Tensor) -> Tensor:
    """The values that this process has of `tensor`."""
    if not is_shared(tensor):
        return tensor
    local: Tensor = tensor.to_local()
    return local


def local_box(tensor: Tensor) -> Box:
    """Which part of `tensor` they are.

    The axes of a mesh are applied from the last to the first: tensor parallelism cuts a parameter,
    and data parallelism what that has left. Each cut is that of `torch.chunk`.
    """
    if not is_shared(tensor):
        return Box.whole(tensor.shape)
    start, shape = [0] * tensor.dim(), list(tensor.shape)
    mesh, coordinates = tensor.device_mesh, tensor.device_mesh.get_coordinate()
    assert coordinates is not None
    for axis, dim in reversed(cut_axes(tensor)):
        size = -(-shape[dim] // mesh.size(axis))
        first = min(coordinates[axis] * size, shape[dim])
        start[dim] += first
        shape[dim] = min(size, shape[dim] - first)
    return Box(tuple(start), tuple(shape))


def copies(tensor: Tensor, world: int) -> int:
    """How many of `world` processes have the same part of `tensor`."""
    if not is_shared(tensor):
        return world
    return world // math.prod(tensor.device_mesh.size(axis) for axis, _ in cut_axes(tensor))


def put(own: Tensor, value: Tensor) -> None:
    """Copy this process's part of the whole `value` into `own`."""
    with torch.no_grad():
        local_part(own).copy_(value[local_box(own).slices])
