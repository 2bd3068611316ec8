"""Reading shards: documents by number from memory maps, whatever shard they lie in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.checksum import file_checksum
from tencentpretrain.data.shard_format import (
    MAIN,
    TOKENIZER,
    Array,
    Column,
    Index,
    offsets_name,
    read_index,
    text_columns,
    values_name,
)
from tencentpretrain.data.shard_writer import Ragged, ShardWriter
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import Tokenizer, load_tokenizer

__all__ = ["Column", "Ragged", "ShardSet", "ShardWriter", "open_shards", "text_columns"]


class ShardSet:
    """Documents of one or more directories of shards, in the order given.

    Args:
        directories: where the shards lie, with the index of each.
    """

    def __init__(self, directories: Sequence[tuple[Path, Index]]) -> None:
        self.directories = tuple(directory for directory, _ in directories)
        indices = [index for _, index in directories]
        self.columns = indices[0].columns
        self.documents = sum(index.documents for index in indices)
        self.tokens = sum(index.tokens for index in indices)
        self.vocab_size = indices[0].vocab_size
        self.tokenizer_fingerprint = indices[0].tokenizer or ""
        self.source: dict[str, int] = {}
        for index in indices:
            for key, count in index.source.items():
                self.source[key] = self.source.get(key, 0) + count
        joined = "\n".join(index.fingerprint for index in indices)
        self.fingerprint = (
            indices[0].fingerprint if len(indices) == 1 else sha256(joined.encode()).hexdigest()
        )
        self._shards = [
            _Shard(directory, number, index)
            for directory, index in directories
            for number in range(len(index.shards))
        ]
        self._starts = np.cumsum([0, *(shard.documents for shard in self._shards)]).tolist()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.directories[0] / TOKENIZER)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return self._tokenizer

    def __len__(self) -> int:
        return self.documents

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document [documents]."""
        parts = [np.diff(shard.offsets[MAIN]) for shard in self._shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def read(self, document: int, start: int = 0, stop: int | None = None) -> Array:
        """Ids of a document, or of its tokens `start` to `stop`: a view on the memory map."""
        return self.column(MAIN, document, start, stop)

    def column(self, name: str, document: int, start: int = 0, stop: int | None = None) -> Array:
        """Values `start` to `stop` of a column of a document; a view unless they are bits."""
        shard, local = self._find(document)
        return shard.read(name, local, start, stop)

    def sentence_ends(self, document: int) -> Array:
        """Where the sentences of a document end, in tokens; the last end is its length."""
        return self.column("sentences", document)

    def word_starts(
        self, document: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.bool_] | None:
        """Whether each token starts a word; None if no segmentation was stored."""
        if "words" not in self.columns:
            return None
        return self.column("words", document, start, stop)

    def sentence_boundaries(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ends of all sentences and of all documents, in tokens counted through all documents."""
        sentences: list[NDArray[np.int64]] = []
        documents: list[NDArray[np.int64]] = []
        base = 0
        for shard in self._shards:
            offsets = shard.offsets[MAIN].astype(np.int64)
            counts = np.diff(shard.offsets["sentences"])
            starts = np.repeat(offsets[:-1], counts)
            sentences.append(base + starts + shard.values["sentences"])
            documents.append(base + offsets[1:])
            base += int(offsets[-1])
        nothing = [np.zeros(0, np.int64)]
        return np.concatenate(sentences or nothing), np.concatenate(documents or nothing)

    def _find(self, document: int) -> tuple[_Shard, int]:
        if not 0 <= document < self.documents:
            raise IndexError(f"there is no document {document}: there are {self.documents}")
        number = bisect_right(self._starts, document) - 1
        return self._shards[number], document - self._starts[number]

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory maps are opened anew in another process, not copied there.
        return (open_shards, (list(self.directories), False))


class _Shard:
    """The memory maps of one shard."""

    def __init__(self, directory: Path, number: int, index: Index) -> None:
        shard = index.shards[number]
        self._name = f"shard {number} of {directory}"
        self.documents = shard.documents
        self.columns = index.columns
        self.values: dict[str, Array] = {}
        self.offsets: dict[str, Array] = {}
        for name, column in index.columns.items():
            count = shard.values[name]
            stored = -(-count // 8) if column.dtype == "bit" else count
            path = directory / values_name(number, name)
            self.values[name] = _map(path, column.stored_dtype, stored)
            if column.along is None:
                path = directory / offsets_name(number, name)
                self.offsets[name] = _map(path, np.dtype(np.int64), shard.documents + 1)
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


def open_shards(paths: Path | Sequence[Path], verify: bool = True) -> ShardSet:
    """Open directories that preprocess.py has made.

    Args:
        paths: one directory, or several made with the same tokenizer.
        verify: whether to read everything and compare checksums.

    Raises:
        DataError: naming the file that is missing, truncated, altered or of another version.
    """
    directories = [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]
    if not directories:
        raise DataError("no directory of shards was given")
    opened = [(directory, read_index(directory)) for directory in directories]
    first = opened[0][1]
    for directory, index in opened:
        if index.tokenizer != first.tokenizer or index.vocab_size != first.vocab_size:
            raise DataError(
                f"{directory} was made with another tokenizer than {directories[0]}; preprocess "
                f"both with the same one"
            )
        if index.columns != first.columns:
            raise DataError(
                f"{directory} has the columns {sorted(index.columns)}, but {directories[0]} has "
                f"{sorted(first.columns)}; preprocess both in the same way"
            )
        _check_files(directory, index, verify)
    shards = ShardSet(opened)
    if verify:
        for shard in shards._shards:
            _check_values(shard, first.vocab_size)
        if first.tokenizer is not None and shards.tokenizer().fingerprint != first.tokenizer:
            raise DataError(
                f"{directories[0] / TOKENIZER} was altered; preprocess the corpus again"
            )
    return shards


def _map(path: Path, dtype: np.dtype[Any], size: int) -> Array:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"{path} is not a plain array file ({error}); preprocess again") from error
    if not isinstance(mapped, np.ndarray) or mapped.dtype != dtype or mapped.shape != (size,):
        raise DataError(
            f"{path} must hold {size} values of type {dtype}, but does not; preprocess again"
        )
    return np.asarray(mapped)  # a plain view: slicing a memmap object costs microseconds


def _check_files(directory: Path, index: Index, verify: bool) -> None:
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


def _check_values(shard: _Shard, vocab_size: int) -> None:
    """What a checksum cannot find in files that were made by hand."""
    for name, offsets in shard.offsets.items():
        if (np.diff(offsets) < 0).any():
            raise DataError(
                f"{shard}: the offsets of the column `{name}` do not grow; preprocess again"
            )
    ids = shard.values[MAIN]
    if len(ids) and int(ids.max()) >= vocab_size:
        raise DataError(
            f"{shard} holds the token id {ids.max()}, which is not in the vocabulary of "
            f"{vocab_size} entries"
        )
    if "sentences" in shard.offsets:
        # The last sentence of a document ends where the document does.
        ends = shard.offsets["sentences"][1:]
        lengths = np.diff(shard.offsets[MAIN])
        if (np.diff(ends, prepend=0) == 0).any() or (
            shard.values["sentences"][ends - 1] != lengths
        ).any():
            raise DataError(f"{shard}: sentences do not end with their documents; preprocess again")
