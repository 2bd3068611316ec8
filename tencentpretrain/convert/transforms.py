"""How tensors of other toolkits become ours and back: a few kinds, each with its inverse.

Shapes: N heads, H width of a head, D width. Sizes that depend on the model are named, and looked up
in the `numbers` of a conversion. Nothing reads values: on the meta device the same calls give the
shapes of the results.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

Numbers = Mapping[str, int]


class Transform(ABC):
    """One way in which their tensors and ours hold the same values."""

    @abstractmethod
    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        """Our tensors, in the order of the rule."""

    @abstractmethod
    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        """Their tensors, in the order of the rule."""


@dataclass(frozen=True)
class Same(Transform):
    """One tensor under two names."""

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return list(theirs)

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return list(ours)


@dataclass(frozen=True)
class Transposed(Transform):
    """Matrices with input and output exchanged; vectors as they are."""

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [_turned(tensor) for tensor in theirs]

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return self.to_ours(ours, numbers)


@dataclass(frozen=True)
class Fused(Transform):
    """One of theirs is ours one below the other, all of one size.

    Args:
        parts: How many they are.
        is_transposed: Whether theirs has input and output exchanged besides.
    """

    parts: int
    is_transposed: bool = False

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        (fused,) = theirs
        return list((_turned(fused) if self.is_transposed else fused).chunk(self.parts))

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        # Beside one another at once: turning the result would hold it in memory twice.
        if self.is_transposed:
            return [torch.cat([_turned(tensor) for tensor in ours], -1)]
        return [torch.cat(list(ours))]


@dataclass(frozen=True)
class Interleaved(Transform):
    """One of theirs holds, head by head, a part of each of ours (BLOOM's queries, keys, values).

    Args:
        parts: How many ours are.
        heads: Name of the number of heads.
    """

    parts: int
    heads: str = "heads"

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        (fused,) = theirs
        by_head = fused.unflatten(0, (numbers[self.heads], self.parts, -1))
        return [part.flatten(0, 1) for part in by_head.unbind(1)]

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        by_head = [tensor.unflatten(0, (numbers[self.heads], -1)) for tensor in ours]
        return [torch.stack(by_head, 1).flatten(0, 2)]


@dataclass(frozen=True)
class SkippedRows(Transform):
    """Theirs begins with rows that no token reads; on the way back they are zeros.

    Args:
        rows: Name of their number.
    """

    rows: str

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [tensor[numbers[self.rows] :] for tensor in theirs]

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        rows = numbers[self.rows]
        return [torch.cat([t.new_zeros((rows, *t.shape[1:])), t]) for t in ours]


@dataclass(frozen=True)
class Squeezed(Transform):
    """Theirs has first dimensions of size 1 that ours lacks.

    Args:
        dims: How many.
    """

    dims: int = 1

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [tensor.squeeze(tuple(range(self.dims))) for tensor in theirs]

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [tensor[(None,) * self.dims] for tensor in ours]


@dataclass(frozen=True)
class ChannelsFirst(Transform):
    """Rows are pixels of a patch: theirs pixel by pixel, ours channel by channel.

    Args:
        channels: Name of the number of channels.
    """

    channels: str = "channels"

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        split = -1, numbers[self.channels]
        return [tensor.unflatten(0, split).transpose(0, 1).flatten(0, 1) for tensor in theirs]

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        split = numbers[self.channels], -1
        return [tensor.unflatten(0, split).transpose(0, 1).flatten(0, 1) for tensor in ours]


@dataclass(frozen=True)
class Turned(Transform):
    """Rows of heads: theirs turn in halves (i and i + H/2), ours as neighbours (2i and 2i + 1).

    Only where `is_interleaved` among the numbers is 1; otherwise both have the layout of theirs.

    Args:
        heads: Name of the number of heads.
    """

    heads: str = "heads"

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [self._exchange(tensor, numbers, (2, -1)) for tensor in theirs]

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [self._exchange(tensor, numbers, (-1, 2)) for tensor in ours]

    def _exchange(self, tensor: Tensor, numbers: Numbers, split: tuple[int, int]) -> Tensor:
        if not numbers.get("is_interleaved"):
            return tensor
        by_head: Tensor = tensor.unflatten(0, (numbers[self.heads], *split))
        return by_head.transpose(1, 2).flatten(0, 2)


def _turned(tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.dim() == 2 else tensor


SAME: Final = Same()
TRANSPOSED: Final = Transposed()
SQUEEZED: Final = Squeezed()
