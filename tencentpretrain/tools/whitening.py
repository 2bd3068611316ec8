"""Whitening of sentence vectors (Su et al., 2021, arXiv:2103.15316).

Vectors x become (x - mean) U diag(s)^(-1/2), where U diag(s) U^T is their covariance, largest
variances first: uncorrelated, of variance 1, and any number of the first components may be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray

from tencentpretrain.errors import CheckpointError, DataError
from tencentpretrain.tools.outputs import published
from tencentpretrain.train.tensor_file import read_tensors, write_tensors

Vectors = NDArray[np.float32]
Numbers = NDArray[np.float64]

SMALLEST: Final = 1e-10
"""Variances below this share of the largest one are rounding errors, no directions of the data."""


class Moments:
    """Mean and covariance of vectors that come in parts, in fp64.

    Parts are merged by the deviations from their own means (Chan et al., 1979), so that a mean that
    is large beside the deviations costs no digits.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self._deviations = np.zeros((width, width))

    def add(self, vectors: Vectors) -> None:
        """Count `vectors` [N, D]."""
        if not len(vectors):
            return
        part = vectors.astype(np.float64)
        mean, total = part.mean(0), self.count + len(part)
        shift = mean - self.mean
        centred = part - mean
        between = np.outer(shift, shift) * (self.count * len(part) / total)
        self._deviations += centred.T @ centred + between
        self.mean += shift * (len(part) / total)
        self.count = total

    @property
    def covariance(self) -> Numbers:
        """[D, D], divided by N - 1."""
        return self._deviations / max(1, self.count - 1)


@dataclass(frozen=True)
class Whitening:
    """A fitted whitening of vectors of width D.

    Args:
        mean: [D].
        directions: [D, D], a column each, those of the largest variance first.
        variances: [D] along them.
    """

    mean: Numbers
    directions: Numbers
    variances: Numbers

    @classmethod
    def fit(cls, moments: Moments) -> Self:
        """The whitening of what `moments` has counted."""
        variances, directions = np.linalg.eigh(moments.covariance)
        return cls(moments.mean.copy(), directions[:, ::-1].copy(), variances[::-1].copy())

    @property
    def rank(self) -> int:
        """In how many directions the vectors differ at all."""
        return int((self.variances > SMALLEST * max(self.variances[0], 0.0)).sum())

    def check(self, width: int, dimensions: int) -> None:
        """Refuse what cannot be whitened.

        Raises:
            DataError: if vectors have another width, or differ in fewer than `dimensions`.
        """
        if width != len(self.mean):
            raise DataError(
                f"the whitening is of vectors of width {len(self.mean)}, but those of this model "
                f"have {width}; fit one with fit_whitening=FILE"
            )
        if dimensions > self.rank:
            raise DataError(
                f"the vectors that the whitening was fitted to differ in {self.rank} directions "
                f"only, which is less than dimensions={dimensions}; ask for at most as many, or "
                "fit it to more texts"
            )

    def apply(self, vectors: Vectors, dimensions: int) -> Vectors:
        """The first `dimensions` components [N, dimensions] of whitened `vectors` [N, D]."""
        matrix = self.directions[:, :dimensions] / np.sqrt(self.variances[:dimensions])
        whitened: Vectors = ((vectors - self.mean) @ matrix).astype(np.float32)
        return whitened

    def save(self, path: Path) -> None:
        """Write a safetensors file that `load` reads, in one step."""
        names = ("mean", "directions", "variances")
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in names}
        with published(path) as partial:
            write_tensors(partial, tensors)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is missing, damaged or something else.
        """
        if not path.is_file():
            raise CheckpointError(
                f"there is no file `{path}` with a whitening; fit one with fit_whitening={path}"
            )
        tensors = read_tensors(path, names=("mean", "directions", "variances"))
        mean, directions, variances = (t.double().numpy() for t in tensors.values())
        if directions.shape != (len(mean), len(mean)) or variances.shape != mean.shape:
            raise CheckpointError(f"`{path}` holds no whitening: its shapes do not fit together")
        return cls(mean, directions, variances)
