"""Batches of examples of similar lengths, in an order that is a pure function like any other."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.loader import Order
from tencentpretrain.data.order import permute
from tencentpretrain.data.packing import Integers

BUCKETS: Final = 0xB0C
"""Part of the key of the order of the batches of a window."""


class SimilarLengths:
    """Samples of another order, sorted by length within windows of several steps.

    The samples of a window are those that `order` has there, so that epochs and mixtures stay what
    they are. The steps that they make, of similar lengths each, come in a random order.

    Args:
        order: Of the samples.
        sizes: [N] length of each example.
        batch_size: Samples of a step, on all ranks together.
        steps: Steps of a window.
        seed: Of the order of the steps.
    """

    def __init__(
        self, order: Order, sizes: Integers, batch_size: int, steps: int, seed: int
    ) -> None:
        self._order = order
        self._sizes = sizes
        self._batch_size = batch_size
        self._steps = steps
        self._seed = seed
        self._known: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def __call__(self, numbers: Integers) -> tuple[Integers, Integers]:
        """Epoch and index of the samples `numbers` [N]."""
        windows, places = np.divmod(numbers, self._steps * self._batch_size)
        epochs, indices = np.empty_like(numbers), np.empty_like(numbers)
        for window in np.unique(windows).tolist():
            here = windows == window
            found = self._window(window)
            epochs[here], indices[here] = (values[places[here]] for values in found)
        return epochs, indices

    def _window(self, window: int) -> tuple[Integers, Integers]:
        """Epochs and indices of all samples of a window."""
        # Only saves time: a window is the same whenever it is made.
        if self._known is None or self._known[0] != window:
            size = self._steps * self._batch_size
            epochs, indices = self._order(window * size + np.arange(size))
            by_length = self._sizes[indices].argsort(kind="stable")
            turned = permute(np.arange(self._steps), self._steps, self._seed, BUCKETS, window)
            chosen = by_length.reshape(self._steps, self._batch_size)[turned].reshape(-1)
            self._known = window, epochs[chosen], indices[chosen]
        return self._known[1:]
