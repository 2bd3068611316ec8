"""Reading shards: documents by number from memory maps, whatever shard they lie in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.media.stored_paths import check_stored, path_of, read_stored
from tencentpretrain.data.shard_arrays import ShardArrays, check_files, check_values
from tencentpretrain.data.shard_format import (
    LABEL,
    MAIN,
    MEDIA,
    PATH,
    PATH_CRC,
    PATH_SIZE,
    TARGET_TOKENIZER,
    TOKENIZER,
    Array,
    Column,
    Index,
    counted_column,
    kind_of,
    read_index,
    text_columns,
)
from tencentpretrain.data.shard_writer import Ragged, ShardWriter
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import Tokenizer, load_tokenizer

__all__ = ["Column", "Ragged", "ShardSet", "ShardWriter", "open_shards", "text_columns"]


class ShardSet:
    """Documents of one or more directories of shards, in the order given.

    Args:
        directories: where the shards lie, with the index of each.
        labels: those that have the first numbers, whatever the directories say.
    """

    def __init__(
        self, directories: Sequence[tuple[Path, Index]], labels: Sequence[str] = ()
    ) -> None:
        self.directories = tuple(directory for directory, _ in directories)
        indices = [index for _, index in directories]
        self.columns = {
            name: column
            for name, column in indices[0].columns.items()
            if all(name in index.columns for index in indices)
        }
        self.documents = sum(index.documents for index in indices)
        self.tokens = sum(index.tokens for index in indices)
        self.vocab_size = indices[0].vocab_size
        self.target_vocab_size = indices[0].target_vocab_size or self.vocab_size
        """Entries of the vocabulary of targets, which is that of sources unless told apart."""
        self.tokenizer_fingerprint = indices[0].tokenizer or ""
        self.has_target_tokenizer = indices[0].target_tokenizer is not None
        """Whether the targets of pairs have a tokenizer of their own."""
        self.target_fingerprint = indices[0].target_tokenizer or self.tokenizer_fingerprint
        self.own_labels = tuple(dict.fromkeys(n for i in indices for n in i.labels or ()))
        """Labels that its documents have."""
        self.labels = list(dict.fromkeys([*labels, *self.own_labels]))
        """What the numbers of labels stand for."""
        self.source: dict[str, int] = {}
        for index in indices:
            for key, count in index.source.items():
                self.source[key] = self.source.get(key, 0) + count
        joined = "\n".join(index.fingerprint for index in indices)
        self.fingerprint = (
            indices[0].fingerprint if len(indices) == 1 else sha256(joined.encode()).hexdigest()
        )
        self._shards = [
            ShardArrays(directory, number, index)
            for directory, index in directories
            for number in range(len(index.shards))
        ]
        numbers = {name: number for number, name in enumerate(self.labels)}
        # [shards] our number of each label of the directory
        self._numbers = [
            [numbers[name] for name in index.labels or ()]
            for _, index in directories
            for _ in index.shards
        ]
        self._starts = np.cumsum([0, *(shard.documents for shard in self._shards)]).tolist()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.directories[0] / TOKENIZER)

    @property
    def has_tokenizer(self) -> bool:
        """Whether there are texts at all: images and sounds may have none."""
        return bool(self.tokenizer_fingerprint)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids.

        Raises:
            DataError: if the documents have no texts.
        """
        self._require_texts()
        return self._tokenizer

    @cached_property
    def _target_tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.directories[0] / TARGET_TOKENIZER)

    def target_tokenizer(self) -> Tokenizer:
        """The tokenizer of the targets of pairs: that of the sources, unless it is another."""
        return self._target_tokenizer if self.has_target_tokenizer else self.tokenizer()

    def __len__(self) -> int:
        return self.documents

    def lengths(self, name: str = MAIN) -> NDArray[np.int64]:
        """Tokens of each document [documents], or values of another column."""
        parts = [np.diff(shard.offsets[name]) for shard in self._shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def values(self, name: str) -> Array:
        """All values of a column, those of all documents in a row."""
        parts = [shard.values[name] for shard in self._shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def label(self, document: int) -> int:
        """Place in `labels` of the label of a document."""
        number = bisect_right(self._starts, document) - 1
        return self._numbers[number][int(self.column(LABEL, document)[0])]

    def media(self, document: int) -> bytes:
        """The encoded bytes of the image or sound of a document.

        Raises:
            DataError: if only its path is stored, and the file is gone or has changed.
        """
        if PATH in self.columns:
            return read_stored(*self._find(document))
        return self.column(MEDIA, document).tobytes()

    def where(self, document: int) -> str:
        """What messages call an image or sound: its path, if that is stored, else its number."""
        shard, local = self._find(document)
        if PATH in self.columns:
            return path_of(shard, local)
        return f"document {local} of {shard}"

    def first_set(self, name: str, start: int = 0) -> NDArray[np.int64]:
        """Place [documents] of the first True of a column of bits, from `start` on.

        It is the length of the document where there is none.
        """
        parts = [shard.first_set(name, start) for shard in self._shards]
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
        self._require_texts()
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
        self._require_texts()
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

    def check(self) -> None:
        """Read all values and both tokenizers, and look for the files of stored paths.

        Raises:
            DataError: if they are not what the index says, or files are missing or have changed.
        """
        for shard in self._shards:
            check_values(shard)
        tokenizers = {TOKENIZER: self.tokenizer} if self.has_tokenizer else {}
        if self.has_target_tokenizer:
            tokenizers[TARGET_TOKENIZER] = self.target_tokenizer
        told = {TOKENIZER: self.tokenizer_fingerprint, TARGET_TOKENIZER: self.target_fingerprint}
        for name, tokenizer in tokenizers.items():
            if tokenizer().fingerprint != told[name]:
                raise DataError(
                    f"{self.directories[0] / name} was altered; preprocess the corpus again"
                )
        if PATH in self.columns:
            check_stored(self._shards)

    def _require_texts(self) -> None:
        if counted_column(self.columns) != MAIN and "sentences" not in self.columns:
            raise DataError(
                f"{self.directories[0]} holds no texts; preprocess with corpus.format=image_text "
                "or audio_text"
            )

    def _find(self, document: int) -> tuple[ShardArrays, int]:
        if not 0 <= document < self.documents:
            raise IndexError(f"there is no document {document}: there are {self.documents}")
        number = bisect_right(self._starts, document) - 1
        return self._shards[number], document - self._starts[number]

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory maps are opened anew in another process, not copied there.
        return (open_shards, (list(self.directories), False, self.labels))


def _needed(index: Index) -> dict[str, Column]:
    """Its columns without those that earlier versions did not write."""
    return {k: column for k, column in index.columns.items() if k not in (PATH_CRC, PATH_SIZE)}


def open_shards(
    paths: Path | Sequence[Path], verify: bool = True, labels: Sequence[str] = ()
) -> ShardSet:
    """Open directories that preprocess.py has made.

    Args:
        paths: one directory, or several made with the same tokenizer.
        verify: whether to read everything, compare checksums and look for files of stored paths.
        labels: those that have the first numbers, so that other data is numbered like known one.

    Raises:
        DataError: naming the file that is missing, truncated, altered or of another version.
    """
    directories = [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]
    if not directories:
        raise DataError("no directory of shards was given")
    opened = [(directory, read_index(directory)) for directory in directories]
    first = opened[0][1]
    for directory, index in opened:
        kind, other = kind_of(index.columns), kind_of(first.columns)
        if kind != other and (index.tokenizer is None) != (first.tokenizer is None):
            raise DataError(
                f"{directory} holds {kind}, but {directories[0]} {other}; give directories of one "
                "kind"
            )
        same = ("tokenizer", "vocab_size", "target_tokenizer", "target_vocab_size")
        if any(getattr(index, key) != getattr(first, key) for key in same):
            raise DataError(
                f"{directory} was made with another tokenizer than {directories[0]}; preprocess "
                f"both with the same one"
            )
        if _needed(index) != _needed(first):
            raise DataError(
                f"{directory} has the columns {sorted(index.columns)}, but {directories[0]} has "
                f"{sorted(first.columns)}; preprocess both in the same way"
            )
        check_files(directory, index, verify)
    shards = ShardSet(opened, labels)
    if verify:
        shards.check()
    return shards
