"""Keys and values of positions that were read before, so that decoding reads each only once."""

from __future__ import annotations

import torch
from torch import Tensor

from tencentpretrain.types import Layout

Pair = tuple[Tensor, Tensor]


class Cache:
    """What a stack of blocks remembers of a batch of rows.

    All rows grow together, so shorter prompts are padded on the left.

    Args:
        layers: Number of layers.
        capacity: Greatest number of positions.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        """Positions read so far, counted on the host."""
        self._valid: Tensor | None = None
        self._own: list[Pair | None] = [None] * layers
        self._memory: list[Pair | None] = [None] * layers

    def extend(self, layout: Layout) -> Tensor | None:
        """Make room for the positions of `layout`; returns which keys are valid, None for all.

        Raises:
            ValueError: if they are more than the capacity leaves.
        """
        rows, length = layout.valid.shape
        stop = self.length + length
        if stop > self.capacity:
            raise ValueError(
                f"the cache was made for {self.capacity} positions, but {stop} are read"
            )
        if self._valid is None and not layout.is_full:
            self._valid = layout.valid.new_ones(rows, self.capacity)
        if self._valid is not None:
            self._valid[:, self.length : stop] = layout.valid
        self.length = stop
        return None if self._valid is None else self._valid[:, :stop]

    def append(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        """Add what `layer` computed of the newest positions; returns all, [B, K, S, H] each."""
        stored = self._own[layer]
        if stored is None:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            stored = self._own[layer] = key.new_empty(shape), value.new_empty(shape)
        start = self.length - key.shape[2]
        for kept, new in zip(stored, (key, value), strict=True):
            kept[:, :, start : self.length] = new
        return stored[0][:, :, : self.length], stored[1][:, :, : self.length]

    def memory(self, layer: int) -> Pair | None:
        """Keys and values of the other sequence, where `layer` has computed them."""
        return self._memory[layer]

    def remember(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep keys and values of the other sequence, which never change."""
        self._memory[layer] = key, value

    def select(self, rows: Tensor) -> None:
        """Go on with `rows` [B'] of those before, as a beam search does."""
        for pairs in (self._own, self._memory):
            for layer, pair in enumerate(pairs):
                if pair is not None:
                    pairs[layer] = pair[0].index_select(0, rows), pair[1].index_select(0, rows)
        if self._valid is not None:
            self._valid = torch.index_select(self._valid, 0, rows)
