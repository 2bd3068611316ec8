"""Masked tokens and next-sentence prediction (Devlin et al., 2019, BERT, section 3.1)."""

from __future__ import annotations

from typing import Final

import numpy as np

from tencentpretrain.data.objectives.base import OBJECTIVES
from tencentpretrain.data.objectives.pairs import Half, Pair, PairObjective
from tencentpretrain.data.order import Permutation, hash_int
from tencentpretrain.data.packing import Integers
from tencentpretrain.types import IGNORE

PARTNERS: Final = 0x9A12
"""Part of the key of who is whose partner."""
SPLIT: Final = 0x5B117
"""Part of the key of where chunks are split."""
IS_NEXT: Final = 0
RANDOM_NEXT: Final = 1


@OBJECTIVES.register("bert")
class BertObjective(PairObjective):
    """Rows whose second half is the next text (label 0) or comes from elsewhere (label 1).

    In each epoch every chunk gets a partner. Half of the partners exchange their second halves, so
    that every half of every chunk is read exactly once an epoch, and a random second half is as
    likely to be any text as in the original procedure. Partners in one document keep theirs.
    """

    supervises = ("mlm", "nsp")

    def _prepare(self) -> None:
        super()._prepare()
        self._orders: dict[int, Permutation] = {}

    def plan(self, epoch: int, index: int) -> Pair:
        if self._size(index) == 1:
            return Pair(self._half(index, 0, 1), None, IGNORE)
        partner = self._partner(epoch, index)
        # Both partners must come to the same decisions, so these are keyed by the first of them.
        chance = hash_int(self.seed, epoch, SPLIT, min(index, partner))
        if chance & 1 and self._may_exchange(index, partner):
            return self._exchange(index, partner, chance >> 1)
        borders = self._borders(index)
        split = int(borders[hash_int(chance, index) % len(borders)])
        size = self._size(index)
        return Pair(self._half(index, 0, split), self._half(index, split, size), IS_NEXT)

    def _partner(self, epoch: int, index: int) -> int:
        """Neighbour in a permutation; the last of an odd number is alone with itself."""
        if epoch not in self._orders:
            # Only saves time: an epoch's order is the same whenever it is made.
            self._orders = {epoch: Permutation(len(self), self.seed, epoch, PARTNERS)}
        order = self._orders[epoch]
        place = order.index_of(index) ^ 1
        return order.at(place) if place < len(self) else index

    def _may_exchange(self, index: int, partner: int) -> bool:
        documents = self.chunks.documents
        return bool(documents[index] != documents[partner]) and self._size(partner) > 1

    def _exchange(self, index: int, partner: int, chance: int) -> Pair:
        """The first half of `index` and the second one of `partner`."""
        low, high = min(index, partner), max(index, partner)
        split_low, split_high = choose_splits(
            self._borders(low),
            self._borders(high),
            (self._size(low), self._size(high), self.room),
            chance,
        )
        own, other = (split_low, split_high) if index == low else (split_high, split_low)
        size = self._size(partner)
        a, b = self._half(index, 0, own), self._half(partner, other, size)
        excess = max(0, own + size - other - self.room)
        if own >= size - other:
            a = _shorten(a, excess, chance)
        else:
            b = _shorten(b, excess, chance)
        return Pair(a, b, RANDOM_NEXT, excess)


def choose_splits(
    low: Integers, high: Integers, sizes: tuple[int, int, int], chance: int
) -> tuple[int, int]:
    """Choose at random where two chunks are split before they exchange their second halves.

    Args:
        low: [N] places where the first chunk may be split.
        high: [M] the same of the second one.
        sizes: tokens of the first chunk, of the second one, and the room of a row.
        chance: a random integer.

    Returns:
        Of the pairs of places at which the fewest tokens exceed the room, any.
    """
    size_low, size_high, room = sizes
    # Row (A low, B high) has `further` + size_high tokens, the other one size_low - `further`.
    further = low[:, None] - high
    excess = np.maximum(further + (size_high - room), 0)
    excess += np.maximum((size_low - room) - further, 0)
    best = (excess == excess.min()).ravel().nonzero()[0]
    first, second = divmod(int(best[chance % len(best)]), len(high))
    return int(low[first]), int(high[second])


def _shorten(half: Half, excess: int, chance: int) -> Half:
    """Cut `excess` tokens from the front or the back."""
    document, start, stop = half
    if hash_int(chance, start) & 1:
        return Half(document, start + excess, stop)
    return Half(document, start, stop - excess)
