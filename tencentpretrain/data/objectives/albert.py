"""Masked tokens and sentence-order prediction (Lan et al., 2020, ALBERT, section 3.1)."""

from __future__ import annotations

from typing import Final

from tencentpretrain.data.objectives.base import OBJECTIVES
from tencentpretrain.data.objectives.pairs import Pair, PairObjective
from tencentpretrain.data.order import hash_int
from tencentpretrain.types import IGNORE

ORDER: Final = 0x50F
"""Part of the key of where chunks are split and in which order their halves stand."""


@OBJECTIVES.register("albert")
class AlbertObjective(PairObjective):
    """Rows of the two halves of a chunk, as written (label 0) or exchanged (label 1)."""

    supervises = ("mlm", "sop")

    def plan(self, epoch: int, index: int) -> Pair:
        size = self._size(index)
        if size == 1:
            return Pair(self._half(index, 0, 1), None, IGNORE)
        chance = hash_int(self.seed, epoch, ORDER, index)
        borders = self._borders(index)
        split = int(borders[(chance >> 1) % len(borders)])
        first, second = self._half(index, 0, split), self._half(index, split, size)
        return Pair(second, first, 1) if chance & 1 else Pair(first, second, 0)
