"""Rows of two halves, [cls] A [sep] B [sep], made of chunks of whole sentences."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tencentpretrain.config import Probability
from tencentpretrain.data.masking import Masker, MaskingConfig
from tencentpretrain.data.objectives.base import Example, Objective, ObjectiveConfig
from tencentpretrain.data.order import generator, hash_uniform
from tencentpretrain.data.packing import Integers
from tencentpretrain.types import Batch, Labels

SPECIALS: Final = 3
"""Tokens of a row beside its two halves."""
SHORT: Final = 0x5407
"""Part of the key of the lengths of short chunks."""


class PairConfig(MaskingConfig, ObjectiveConfig):
    """Keys of the objectives with two halves."""

    short_rate: Probability = 0.1
    """Part of the chunks that aim at a random shorter length, as fine-tuning has short texts."""


class Chunks(NamedTuple):
    """Parts [start, stop) of documents, in tokens of all documents together.

    Args:
        starts: [N] first tokens, ascending.
        stops: [N] ends.
        documents: [N] numbers of their documents.
    """

    starts: Integers
    stops: Integers
    documents: Integers


def cut_units(
    sentence_ends: Integers, document_ends: Integers, used: NDArray[np.bool_], limit: int
) -> tuple[Integers, Integers]:
    """Ends of the sentences of the `used` documents, and the document of each.

    Sentences of more than `limit` tokens are cut into pieces of `limit`, and empty ones left out.
    """
    lengths = np.diff(sentence_ends, prepend=0)
    documents = document_ends.searchsorted(sentence_ends, side="left")
    kept = (lengths > 0) & used[np.minimum(documents, len(used) - 1)]
    ends, lengths, documents = sentence_ends[kept], lengths[kept], documents[kept]
    pieces = -(-lengths // limit)
    if not len(pieces) or pieces.max() == 1:
        return ends, documents
    last = pieces.cumsum() - 1
    number = np.arange(last[-1] + 1) - (last - pieces + 1).repeat(pieces)
    cut = (ends - lengths).repeat(pieces) + (number + 1) * limit
    cut[last] = ends
    return cut, documents.repeat(pieces)


def cut_chunks(
    sentence_ends: Integers,
    document_ends: Integers,
    used: NDArray[np.bool_],
    limit: int,
    short_rate: float,
    seed: int,
) -> Chunks:
    """Partition documents into chunks: as many whole sentences as fit, greedily.

    With probability `short_rate` a chunk aims at a length drawn from 2 to `limit`, which only its
    first sentence may exceed. Sentences longer than `limit` are cut.

    Where a chunk ends follows from where it starts, so the ends of all *possible* chunks are found
    at once; those that begin at the first sentence of a document and follow on each other are
    then marked in rounds that double the distance, without a loop over documents.
    """
    ends, documents = cut_units(sentence_ends, document_ends, used, limit)
    count = len(ends)
    if not count:
        return Chunks(ends, ends, documents)
    is_first = np.diff(documents, prepend=-1) != 0
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1]
    # Documents that are not used, or have no token, may lie between two units.
    before = np.concatenate(([0], document_ends))
    starts[is_first] = before[documents[is_first]]
    target = np.full(count, limit)
    chance = hash_uniform(starts, seed, SHORT)
    short = chance < short_rate
    target[short] = 2 + (chance[short] / short_rate * (limit - 1)).astype(np.int64)
    last = np.append(is_first.nonzero()[0][1:], count)[is_first.cumsum() - 1]
    after = ends.searchsorted(starts + target, side="right")
    after = np.clip(after, np.arange(1, count + 1), last)
    begins = _reachable(is_first, after)
    return Chunks(starts[begins], ends[after[begins] - 1], documents[begins])


def _reachable(roots: NDArray[np.bool_], after: Integers) -> Integers:
    """Which elements are reached from `roots` by steps to `after`, which leads behind the end."""
    marked = np.append(roots, True)
    jump = np.append(after, len(after))
    reached = 0
    while True:
        found = marked.nonzero()[0]
        if len(found) == reached:
            return found[:-1]
        reached = len(found)
        marked[jump[found]] = True
        jump = jump[jump]


class Half(NamedTuple):
    """Part [start, stop) of the tokens of `document`, counted from its beginning."""

    document: int
    start: int
    stop: int


class Pair(NamedTuple):
    """What a row is made of.

    Args:
        a: first half.
        b: second half, None where the chunk is a single token.
        label: 0 for text as it was written, 1 for the other case, `IGNORE` without a second half.
        cut: tokens of the two chunks' halves that found no room in the row.
    """

    a: Half
    b: Half | None
    label: int
    cut: int = 0


class PairObjective(Objective):
    """Masked rows of two halves with a label for the row; subclasses choose the halves."""

    Config = PairConfig
    config: PairConfig

    def _prepare(self) -> None:
        self._cls, self._sep = self.special("cls"), self.special("sep")
        self._mask = Masker(self.config, self.tokenizer)
        sentence_ends, document_ends = self.shards.sentence_boundaries()
        self._sentence_ends = sentence_ends
        self._begins = np.concatenate(([0], document_ends))
        used = np.zeros(self.shards.documents, np.bool_)
        used[self.documents] = True
        self.room = self.config.length - SPECIALS
        """Greatest length of both halves together, in tokens."""
        self.chunks = cut_chunks(
            sentence_ends, document_ends, used, self.room, self.config.short_rate, self.seed
        )

    def __len__(self) -> int:
        return len(self.chunks.starts)

    @abstractmethod
    def plan(self, epoch: int, index: int) -> Pair:
        """Halves of row `index` of `epoch`."""

    def make(self, epoch: int, index: int) -> Example:
        pair = self.plan(epoch, index)
        halves = [pair.a] if pair.b is None else [pair.a, pair.b]
        sep = [self._sep]
        parts: list[NDArray[Any] | list[int]] = [[self._cls]]
        for half in halves:
            parts += [self.shards.read(*half), sep]
        original = np.concatenate(parts, dtype=np.int64)
        random = generator(self.seed, epoch, index)
        ids, chosen = self._mask(original, random, self._word_starts(halves))
        segments = np.zeros(len(ids), np.int64)
        segments[2 + pair.a.stop - pair.a.start :] = 1
        return {
            "ids": ids,
            "segments": segments,
            "index": chosen,
            "labels": original[chosen],
            "row_label": np.array([pair.label]),
        }

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        labels = np.concatenate([example["row_label"] for example in examples])
        batch.labels[self.supervises[1]] = Labels(torch.from_numpy(labels))
        return batch

    def _word_starts(self, halves: list[Half]) -> NDArray[np.bool_] | None:
        """Where words of the stored segmentation start in a row; None without one."""
        parts: list[NDArray[np.bool_] | list[bool]] = [[True]]
        for half in halves:
            starts = self.shards.word_starts(*half)
            if starts is None:
                return None
            parts += [starts, [True]]
        return np.concatenate(parts)

    def _size(self, index: int) -> int:
        return int(self.chunks.stops[index] - self.chunks.starts[index])

    def _borders(self, index: int) -> Integers:
        """Where chunk `index` may be split: between its sentences, or anywhere in a single one."""
        start, stop = self.chunks.starts[index], self.chunks.stops[index]
        ends = self._sentence_ends
        inner = ends[ends.searchsorted(start, side="right") : ends.searchsorted(stop)]
        return inner - start if len(inner) else np.arange(1, stop - start)

    def _half(self, index: int, start: int, stop: int) -> Half:
        """Part [start, stop) of chunk `index`."""
        document = int(self.chunks.documents[index])
        origin = int(self.chunks.starts[index] - self._begins[document])
        return Half(document, origin + start, origin + stop)
