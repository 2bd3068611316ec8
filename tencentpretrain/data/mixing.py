"""Several sources of examples, drawn from by weights."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from tencentpretrain.data.loader import Examples, ShuffledEpochs
from tencentpretrain.data.order import hash_int
from tencentpretrain.data.packing import Integers
from tencentpretrain.types import Batch, Origin

if TYPE_CHECKING:
    from tencentpretrain.targets.companion import Companion, Setting

TURN: Final = 0x7E4
"""Part of the key of where the sequence of a source begins."""


def source_key(name: str) -> int:
    """A number for the keys of a source: what is drawn for it depends on its name alone."""
    return int.from_bytes(name.encode())


class Mixture:
    """The examples of all sources, one source behind another; they are collated alike.

    Args:
        sources: examples by the name of their source.
        weights: of the sources, in the same order; only their ratios count.
        seed: of the order of samples.
    """

    def __init__(
        self, sources: Mapping[str, Examples], weights: Sequence[float], seed: int
    ) -> None:
        self._names = (*sources,)
        self._sources = [*sources.values()]
        sizes = [len(examples) for examples in self._sources]
        self._starts = [0, *np.cumsum(sizes).tolist()]
        self.order = MixedOrder([*sources], sizes, weights, seed)
        """Which example each sample of a run is."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def make(self, epoch: int, index: int) -> tuple[int, Any]:
        """Number of the source of example `index` of all, and that example in its own `epoch`."""
        number = bisect_right(self._starts, index) - 1
        return number, self._sources[number].make(epoch, index - self._starts[number])

    def collate(self, examples: list[tuple[int, Any]]) -> Batch:
        """As the first source does, and where each row is from."""
        batch = self._sources[0].collate([example for _, example in examples])
        batch.origin = Origin(self._names, torch.tensor([number for number, _ in examples]))
        return batch

    def sizes(self) -> Integers | None:
        """Cost [N] of each example; None where those of a source are all alike."""
        found = [getattr(examples, "sizes", _unknown)() for examples in self._sources]
        parts = [part for part in found if part is not None]
        return np.concatenate(parts) if len(parts) == len(found) else None

    def companion(self, setting: Setting) -> Companion | None:
        """That of the first source: all have one objective."""
        companion: Companion | None = getattr(self._sources[0], "companion", _nothing)(setting)
        return companion


def _unknown() -> None:
    """The sizes of examples that have none."""


def _nothing(setting: Setting) -> None:
    """The companion of examples that have none."""


class MixedOrder:
    """Samples shared out among sources exactly by their weights, as evenly as can be.

    Of n samples the first source, whose share is w, has those at which floor(n w + turn) grows. The
    second has its part of the samples that are left in the same way, and so on. So how many
    samples each source had before any sample is known without counting, and in any window of
    samples it differs from the weights by no more than a few (Bresenham's line, source by source).
    Sample c of a source is the example that sample c of a run on this source alone would be:
    each goes through epochs of its own, in permutations of its own.

    Args:
        names: of the sources; the permutations are keyed by them.
        sizes: examples of each source.
        weights: of the sources; only their ratios count.
        seed: of turns and permutations.
    """

    def __init__(
        self, names: Sequence[str], sizes: Sequence[int], weights: Sequence[float], seed: int
    ) -> None:
        # As they are written, so that 0.7 and 0.3 are 7 and 3: sums of floats would not be exact.
        exact = [Fraction(str(weight)) for weight in weights]
        scale = lcm(*(weight.denominator for weight in exact))
        self._shares = [int(weight * scale) for weight in exact]
        self._lefts = [sum(self._shares[number:]) for number in range(len(exact))]
        self._turns = [
            hash_int(seed, TURN, source_key(name)) % left
            for name, left in zip(names, self._lefts, strict=True)
        ]
        self._orders = [
            ShuffledEpochs(size, seed, source_key(name))
            for name, size in zip(names, sizes, strict=True)
        ]
        self._starts = np.cumsum([0, *sizes]).tolist()

    def __call__(self, numbers: Integers) -> tuple[Integers, Integers]:
        """Epoch and index, counted through all sources, of the samples `numbers` [N]."""
        epochs, indices = np.empty_like(numbers), np.empty_like(numbers)
        for source, (places, counts) in enumerate(self.share(numbers)):
            epochs[places], inside = self._orders[source](counts)
            indices[places] = inside + self._starts[source]
        return epochs, indices

    def share(self, numbers: Integers) -> Iterator[tuple[Integers, Integers]]:
        """For each source: which of `numbers` [N] are its samples, and how many it had before."""
        places = np.arange(len(numbers))
        # Python's integers: products with weights of many digits exceed 64 bits.
        counts: NDArray[np.object_] = numbers.astype(object)
        for share, left, turn in zip(self._shares, self._lefts, self._turns, strict=True):
            before = (counts * share + turn) // left
            mine = ((counts + 1) * share + turn) // left > before
            yield places[mine], before[mine].astype(np.int64)
            places, counts = places[~mine], (counts - before)[~mine]
