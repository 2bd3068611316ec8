"""Rows of different lengths put together into one padded grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.types import Layout


class Grid:
    """The [B, S] grid that holds rows of the given lengths.

    Args:
        rows: any sequence of arrays whose lengths are those of the rows.
        step: S is the greatest length rounded up to a multiple of this,
        limit: though not beyond this, unless a row is longer itself.
    """

    def __init__(self, rows: Sequence[NDArray[Any]], step: int, limit: int) -> None:
        lengths = np.array([len(row) for row in rows])
        self.lengths = tuple(lengths.tolist())
        longest = int(lengths.max())
        self.width = max(longest, min(-(-longest // step) * step, limit))
        self.tokens = int(lengths.sum())
        self._valid = np.arange(self.width) < lengths[:, None]

    def fill(self, rows: Sequence[NDArray[Any]], padding: int) -> Tensor:
        """The values of `rows` as int64 [B, S]."""
        values = np.full(self._valid.shape, padding, np.int64)
        values[self._valid] = np.concatenate(rows)
        return torch.from_numpy(values)

    def fill_vectors(self, rows: Sequence[NDArray[np.float32]]) -> Tensor:
        """The values of `rows`, which are [length, F] each, as float32 [B, S, F], 0 as padding."""
        values = np.zeros((*self._valid.shape, rows[0].shape[1]), np.float32)
        for row, vectors in zip(values, rows, strict=True):
            row[: len(vectors)] = vectors
        return torch.from_numpy(values)

    def flat(self, positions: Sequence[NDArray[Any]]) -> Tensor:
        """Positions in each row as positions in the flat grid [K]."""
        shifted = [index + row * self.width for row, index in enumerate(positions)]
        return torch.from_numpy(np.concatenate(shifted))

    def layout(self, documents: Tensor | None = None) -> Layout:
        """Which positions hold a value."""
        return Layout.of(torch.from_numpy(self._valid), documents=documents)
