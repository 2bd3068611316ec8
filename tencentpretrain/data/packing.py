"""Documents as one stream of tokens that is cut into full rows, and the held-out part of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.order import hash_int, hash_uniform

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

HOLDOUT: Final = 0x401D
"""Seed of the held-out part: runs with other seeds are to be compared on the same documents."""
OFFSET: Final = 0x0FF5
"""Part of the key of the place where the circle of an epoch begins."""


class Documents(Protocol):
    """What is read of stored documents; `ShardSet` is one.

    `start` and `stop` are counted in tokens from the beginning of the document.
    """

    @property
    def documents(self) -> int: ...
    def lengths(self) -> Integers: ...
    def read(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[Any]: ...
    def sentence_boundaries(self) -> tuple[Integers, Integers]: ...
    def word_starts(
        self, document: int, start: int = 0, stop: int | None = None
    ) -> Flags | None: ...


class Piece(NamedTuple):
    """A part of what stands for one document in a stream: prefix, document, suffix.

    Args:
        document: number of the document.
        size: its tokens.
        start: first token of the part, counted from the prefix on.
        stop: end of the part.
    """

    document: int
    size: int
    start: int
    stop: int


class Row(NamedTuple):
    """Consecutive tokens of a stream.

    Args:
        ids: [S] token ids.
        documents: [S] 0, 1, ... for the pieces of the row.
        positions: [S] position of each token in its piece.
    """

    ids: Integers
    documents: Integers
    positions: Integers


class DocumentStream:
    """Documents one after another, the first again behind the last; nothing is read beforehand.

    Args:
        shards: where the documents are.
        documents: numbers of those to use; empty ones are left out.
        prefix: ids before each document.
        suffix: ids behind each document.
    """

    def __init__(
        self,
        shards: Documents,
        documents: Integers,
        prefix: tuple[int, ...] = (),
        suffix: tuple[int, ...] = (),
    ) -> None:
        lengths = shards.lengths()[documents]
        self._shards = shards
        self._documents = documents[lengths > 0]
        self._ends = (lengths[lengths > 0] + len(prefix) + len(suffix)).cumsum()
        self._prefix = np.array(prefix, np.int64)
        self._suffix = np.array(suffix, np.int64)
        self.total = int(self._ends[-1]) if len(self._ends) else 0
        """Tokens of the stream, prefixes and suffixes included."""

    def offset(self, seed: int, epoch: int) -> int:
        """Where the rows of an epoch begin, so that they are cut at other places each time."""
        return hash_int(seed, epoch, OFFSET) % self.total

    def pieces(self, start: int, count: int) -> list[Piece]:
        """Where the `count` tokens from `start` (modulo `total`) come from."""
        start %= self.total
        number = int(self._ends.searchsorted(start, side="right"))
        begin = int(self._ends[number - 1]) if number else 0
        around = len(self._prefix) + len(self._suffix)
        found = []
        while count:
            end = int(self._ends[number])
            stop = min(end, start + count)
            document = int(self._documents[number])
            found.append(Piece(document, end - begin - around, start - begin, stop - begin))
            count -= stop - start
            number += 1
            start = begin = end
            if number == len(self._ends):
                number = start = begin = 0
        return found

    def read(self, pieces: list[Piece], before: tuple[int, ...] = ()) -> Row:
        """The tokens of `pieces`; ids to put `before` them count to the first piece."""
        parts = self._parts(pieces, self._shards.read, self._prefix, self._suffix)
        ids = np.concatenate([np.array(before, np.int64), *parts], dtype=np.int64)
        lengths = np.array([piece.stop - piece.start for piece in pieces])
        lengths[0] += len(before)
        starts = lengths.cumsum() - lengths
        documents = np.arange(len(pieces)).repeat(lengths)
        return Row(ids, documents, np.arange(len(ids)) - starts.repeat(lengths))

    def word_starts(self, pieces: list[Piece]) -> Flags | None:
        """Whether a word of the stored segmentation starts at each token of `pieces`.

        None where preprocessing stored no segmentation.
        """
        before, behind = np.ones_like(self._prefix, bool), np.ones_like(self._suffix, bool)
        parts = self._parts(pieces, self._shards.word_starts, before, behind)
        return None if any(part is None for part in parts) else np.concatenate(parts)

    @staticmethod
    def _parts(
        pieces: list[Piece],
        read: Callable[[int, int, int], Any],
        prefix: NDArray[Any],
        suffix: NDArray[Any],
    ) -> list[Any]:
        """What `read` says of the documents of `pieces`, between the prefixes and suffixes."""
        parts: list[Any] = []
        width = len(prefix)
        for document, size, start, stop in pieces:
            if start < width:
                parts.append(prefix[start:stop])
            first, last = max(start - width, 0), min(stop - width, size)
            if first < last:
                parts.append(read(document, first, last))
            if stop > width + size:
                parts.append(suffix[max(start - width - size, 0) : stop - width - size])
        return parts


class DocumentPieces:
    """Documents cut one by one into pieces of at most `size` tokens, numbered in order."""

    def __init__(self, shards: Documents, documents: Integers, size: int) -> None:
        self._shards = shards
        self._documents = documents
        self._lengths = shards.lengths()[documents]
        self._size = size
        self._ends = (-(-self._lengths // size)).cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, index: int) -> tuple[NDArray[Any], Flags | None]:
        """Tokens of piece `index`, and where stored words start in it."""
        number = int(self._ends.searchsorted(index, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        start = (index - before) * self._size
        stop = min(start + self._size, int(self._lengths[number]))
        document = int(self._documents[number])
        tokens = self._shards.read(document, start, stop)
        return tokens, self._shards.word_starts(document, start, stop)


def split_documents(
    count: int, holdout_fraction: float, seed: int = HOLDOUT
) -> tuple[Integers, Integers]:
    """Numbers of the documents to train on, and of those held out for validation.

    A document is held out by a hash of its number, so that documents appended to a corpus later
    move none of the earlier ones. Of two or more documents at least one is on either side.
    """
    chance = hash_uniform(np.arange(count), seed)
    held_out = chance < holdout_fraction
    if count < 2 or holdout_fraction <= 0:
        held_out[:] = False
    else:
        held_out[chance.argmin()] = True
        held_out[chance.argmax()] = False
    return (~held_out).nonzero()[0], held_out.nonzero()[0]
