"""Stored documents and their tokenizer in memory, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tencentpretrain.data.packing import Flags, Integers

SPECIALS = 7


class FakeTokenizer:
    """Ids 0 to 6 are special; of the others every fourth continues a word."""

    def __init__(self, vocab_size: int = 1000, missing: Sequence[str] = ()) -> None:
        self.vocab_size = vocab_size
        names = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
        ids = {name: None if name in missing else i for i, name in enumerate(names)}
        self.pad, self.unk, self.cls, self.sep = (ids[name] for name in names[:4])
        self.mask, self.bos, self.eos = (ids[name] for name in names[4:])
        self.special_ids = frozenset(i for i in ids.values() if i is not None)
        self.continues = np.arange(vocab_size) % 4 == 0
        self.continues[:SPECIALS] = False


class FakeShards:
    """Documents given as lists of sentences; `words` also stores a segmentation.

    Args:
        documents: token ids by document and sentence.
        words: whether a stored word starts at a token, by document; None stores none.
    """

    def __init__(
        self, documents: Sequence[Sequence[Sequence[int]]], words: Sequence[Flags] | None = None
    ) -> None:
        self.texts = [
            np.array([token for sentence in document for token in sentence], np.uint16)
            for document in documents
        ]
        self.documents = len(self.texts)
        self.tokens = sum(map(len, self.texts))
        self._words = words
        lengths = [len(sentence) for document in documents for sentence in document]
        self._boundaries = np.cumsum(lengths, dtype=np.int64), np.cumsum(self.lengths())

    def lengths(self) -> Integers:
        return np.array([len(text) for text in self.texts], np.int64)

    def read(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.texts[document][start:stop]

    def sentence_boundaries(self) -> tuple[Integers, Integers]:
        return self._boundaries

    def word_starts(self, document: int, start: int = 0, stop: int | None = None) -> Flags | None:
        return None if self._words is None else self._words[document][start:stop]


def numbered_shards(sizes: Sequence[Sequence[int]], is_repeated: bool = False) -> FakeShards:
    """Documents with sentences of `sizes` tokens; all ids differ, unless few are repeated."""
    count = sum(sum(document) for document in sizes)
    ids = iter(np.arange(count) % 900 + SPECIALS if is_repeated else np.arange(count) + SPECIALS)
    return FakeShards([[[int(next(ids)) for _ in range(size)] for size in d] for d in sizes])


def random_shards(documents: int, seed: int = 0, longest: int = 30) -> FakeShards:
    """Documents of 1 to 12 sentences of 1 to `longest` tokens, with ids that all differ."""
    random = np.random.default_rng(seed)
    sizes = [random.integers(1, longest + 1, random.integers(1, 13)) for _ in range(documents)]
    return numbered_shards([s.tolist() for s in sizes])
