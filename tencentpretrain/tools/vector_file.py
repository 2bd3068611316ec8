"""Vectors in a file that grows while they are computed: `.npy`, or numbers between tabs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

NPY: Final = ".npy"
TSV: Final = ".tsv"
BLOCK: Final = 4096
"""Vectors that are read back at once."""
Vectors = NDArray[np.float32]


class VectorFile:
    """Writes vectors [N, D] one part after another; N need not be known before.

    Use it in a `with` statement; the file is on the disk when that is left.

    Args:
        path: a new file.
        width: D.
        suffix: form of the file, `.npy` or `.tsv`.
    """

    def __init__(self, path: Path, width: int, suffix: str = NPY) -> None:
        self._path, self._width = path, width
        self._is_npy = suffix == NPY
        self.count = 0

    def __enter__(self) -> Self:
        self._file = open(self._path, "xb")  # closed by __exit__
        self._write_header()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()
                self._file.flush()
                os.fsync(self._file.fileno())

    def append(self, vectors: Vectors) -> None:
        """Write `vectors` [n, D] behind what is there."""
        data = np.ascontiguousarray(vectors, np.float32)
        if self._is_npy:
            self._file.write(data.data)
        else:
            for row in data.tolist():
                line = "\t".join(f"{value:.7g}" for value in row) + "\n"
                self._file.write(line.encode())
        self.count += len(data)

    def _write_header(self) -> None:
        # numpy reserves room for a first axis of 21 digits, so the length never changes.
        if self._is_npy:
            shape = (self.count, self._width)
            header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)


def read_vectors(path: Path) -> Iterator[Vectors]:
    """The vectors of a `.npy` file, some at a time."""
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    for first in range(0, len(vectors), BLOCK):
        yield np.array(vectors[first : first + BLOCK])
