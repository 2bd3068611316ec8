"""Sizes that the parts of one model share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Patches:
    """The grid of patches that an embedding makes of an image.

    Args:
        size: Height and width of a patch, in pixels.
        rows: Number of patches from top to bottom.
        columns: Number of patches from left to right.
        channels: Values of a pixel C.
        before: Number of positions before the patches: 1 for a class token, else 0.
    """

    size: tuple[int, int]
    rows: int
    columns: int
    channels: int = 3
    before: int = 0

    @property
    def count(self) -> int:
        """Number of patches P."""
        return self.rows * self.columns

    @property
    def positions(self) -> int:
        """Number of positions S of an image."""
        return self.before + self.count

    @property
    def values(self) -> int:
        """Number of values of the pixels of a patch."""
        return self.channels * self.size[0] * self.size[1]


@dataclass(frozen=True)
class Sizes:
    """Run-time sizes of the source or of the target side of a model.

    Args:
        hidden: Width D.
        embedding: Width E of the parts of the embedding; D unless factorised.
        vocabulary: Entries V of the word table.
        source: For a decoder, the width of what the encoder returns; None is D.
        towers: For targets, widths of the streams that have a tower of their own.
        patches: What images are cut into, where the embedding reads them.
    """

    hidden: int
    embedding: int
    vocabulary: int
    source: int | None = None
    towers: Mapping[str, int] = field(default_factory=dict)
    patches: Patches | None = None

    def width(self, stream: str) -> int:
        """Width of the states that `stream` is encoded into."""
        return self.towers.get(stream, self.source or self.hidden)
