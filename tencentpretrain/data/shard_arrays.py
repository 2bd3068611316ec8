"""The arrays of one shard, mapped into memory, and what makes sure that they can be trusted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.checksum import file_checksum
from tencentpretrain.data.shard_format import (
    LABEL,
    MAIN,
    TARGET,
    Array,
    Index,
    counted_column,
    offsets_name,
    values_name,
)
from tencentpretrain.errors import DataError

BITS_AT_ONCE: Final = 1 << 22
"""Bits that are looked at together, where no document has more."""


class ShardArrays:
    """The memory maps of one shard."""

    def __init__(self, directory: Path, number: int, index: Index) -> None:
        shard = index.shards[number]
        self._name = f"shard {number} of {directory}"
        self.index = index
        self.documents = shard.documents
        self.columns = index.columns
        self.values: dict[str, Array] = {}
        self.offsets: dict[str, Array] = {}
        for name, column in index.columns.items():
            count = shard.values[name]
            stored = -(-count // 8) if column.dtype == "bit" else count
            path = directory / values_name(number, name)
            self.values[name] = map_array(path, column.stored_dtype, stored)
            if column.along is None:
                path = directory / offsets_name(number, name)
                self.offsets[name] = map_array(path, np.dtype(np.int64), shard.documents + 1)
                if self.offsets[name][0] != 0 or self.offsets[name][-1] != count:
                    raise DataError(f"{path} does not fit its values; preprocess the corpus again")
        for name, column in index.columns.items():
            if column.along is not None:
                self.offsets[name] = self.offsets[column.along]

    def __str__(self) -> str:
        return self._name

    def read(self, name: str, document: int, start: int, stop: int | None) -> Array:
        offsets = self.offsets[name]
        first, last = int(offsets[document]), int(offsets[document + 1])
        if stop is not None:
            last = min(last, first + stop)
        first = min(first + start, last)
        values = self.values[name]
        if self.columns[name].dtype != "bit":
            return values[first:last]
        byte = first >> 3
        bits = np.unpackbits(values[byte : (last + 7) >> 3])
        return bits[first - 8 * byte : last - 8 * byte].view(bool)

    def first_set(self, name: str, start: int) -> NDArray[np.int64]:
        """Place of the first bit at `start` or later in each document; its length without one."""
        offsets = self.offsets[name].astype(np.int64)
        found = np.empty(self.documents, np.int64)
        document = 0
        while document < self.documents:
            # Bits take eight times their bytes, and their places much more, so not all at once.
            limit = offsets[document] + BITS_AT_ONCE
            stop = max(document + 1, int(offsets.searchsorted(limit, side="right")) - 1)
            byte = int(offsets[document]) >> 3
            bits = np.unpackbits(self.values[name][byte : (int(offsets[stop]) + 7) >> 3])
            places = np.append(bits.nonzero()[0] + 8 * byte, offsets[stop])
            begins, ends = offsets[document:stop], offsets[document + 1 : stop + 1]
            first = places[places.searchsorted(np.minimum(begins + start, offsets[stop]))]
            found[document:stop] = np.minimum(first, ends) - begins
            document = stop
        return found


def map_array(path: Path, dtype: np.dtype[Any], size: int) -> Array:
    """The `size` values of a file, mapped into memory.

    Raises:
        DataError: if the file holds anything else.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"{path} is not a plain array file ({error}); preprocess again") from error
    if not isinstance(mapped, np.ndarray) or mapped.dtype != dtype or mapped.shape != (size,):
        raise DataError(
            f"{path} must hold {size} values of type {dtype}, but does not; preprocess again"
        )
    return np.asarray(mapped)  # a plain view: slicing a memmap object costs microseconds


def check_files(directory: Path, index: Index, verify: bool) -> None:
    """Compare sizes and, to `verify`, checksums with the index.

    Raises:
        DataError: naming the file that is missing, truncated or altered.
    """
    for name, stored in index.files.items():
        path = directory / name
        if not path.is_file():
            raise DataError(f"{path} is missing; preprocess the corpus again")
        if path.stat().st_size != stored.bytes:
            raise DataError(
                f"{path} has {path.stat().st_size} bytes instead of {stored.bytes}: it is "
                f"truncated or altered; preprocess the corpus again"
            )
    if verify:
        with ThreadPoolExecutor() as pool:
            found = pool.map(file_checksum, [directory / name for name in index.files])
            for (name, stored), checksum in zip(index.files.items(), found, strict=True):
                if checksum != stored.checksum:
                    raise DataError(
                        f"{directory / name} was altered: its checksum is {checksum} instead of "
                        f"{stored.checksum}; preprocess the corpus again"
                    )


def check_values(shard: ShardArrays) -> None:
    """What a checksum cannot find in files that were made by hand.

    Raises:
        DataError: naming the shard and what is wrong with it.
    """
    index = shard.index
    for name, offsets in shard.offsets.items():
        if (np.diff(offsets) < 0).any():
            raise DataError(
                f"{shard}: the offsets of the column `{name}` do not grow; preprocess again"
            )
    for name, size in ((MAIN, index.vocab_size), (TARGET, index.target_vocab_size)):
        ids = shard.values.get(name, np.zeros(0))
        if size is not None and len(ids) and int(ids.max()) >= size:
            raise DataError(
                f"{shard} holds the token id {ids.max()}, which is not in the vocabulary of "
                f"{size} entries"
            )
    if index.labels is not None:
        numbers, counts = shard.values[LABEL], np.diff(shard.offsets[LABEL])
        least = 1 if counted_column(index.columns) == MAIN else 0  # media need no label
        is_one = ((counts >= least) & (counts <= 1)).all()
        if not is_one or not set(np.unique(numbers)) <= {*range(len(index.labels))}:
            raise DataError(
                f"{shard} must hold one of {len(index.labels)} labels for each document, but does "
                "not; preprocess again"
            )
    if "sentences" in shard.offsets:
        # The last sentence of a document ends where the document does.
        ends = shard.offsets["sentences"][1:]
        lengths = np.diff(shard.offsets[MAIN])
        if (np.diff(ends, prepend=0) == 0).any() or (
            shard.values["sentences"][ends - 1] != lengths
        ).any():
            raise DataError(f"{shard}: sentences do not end with their documents; preprocess again")
