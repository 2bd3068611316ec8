"""Texts to ids in portions of bounded size, and what becomes of a slice of a corpus.

Imported by worker processes: nothing here may import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.segment import Segmenter, word_starts
from tencentpretrain.data.shard_format import MAIN, token_dtype
from tencentpretrain.data.shard_writer import Ragged
from tencentpretrain.tokenizers.base import Tokenizer

BATCH_CHARACTERS: Final = 1 << 18
"""Characters that are tokenised at once; the library keeps a hundred bytes and more for each."""
NO_TOKENS: Final = "sentences without tokens"


@dataclass
class Encoded:
    """What a slice became.

    Args:
        columns: values of its documents.
        documents: number of documents.
        sentences: number of sentences.
        tokens: number of tokens in the main column.
        unknown: how many of them are the unknown token.
        consumed: bytes on the disk that the slice stood for.
        size: bytes of text in it.
        remarks: counts of what was left out or changed, by reason.
        target_tokens: number of tokens in the target column.
        target_unknown: how many of them are the unknown token.
        labels: those that the values of the column of labels stand for, by their first appearance.
        left_out: names of files that were left out, and why.
    """

    columns: dict[str, Ragged]
    documents: int
    sentences: int
    tokens: int
    unknown: int
    consumed: int
    size: int
    remarks: Counter[str] = field(default_factory=Counter)
    target_tokens: int = 0
    target_unknown: int = 0
    labels: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts.

    Args:
        ids: all texts in a row [N].
        lengths: ids of each text [texts].
        starts: whether a word of the segmentation starts at each id [N]; empty without one.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.int64]
    starts: NDArray[np.bool_]


class TextEncoder:
    """Tokenises texts with one tokenizer and maybe finds their words."""

    def __init__(self, tokenizer: Tokenizer, segmenter: Segmenter | None = None) -> None:
        self._tokenizer = tokenizer
        self._segmenter = segmenter
        self._dtype = np.dtype(token_dtype(tokenizer.vocab_size))

    def __call__(self, texts: Sequence[str]) -> Tokens:
        parts = [self._encode(batch) for batch in _batches(texts)]
        return Tokens(
            _join([part[0] for part in parts], self._dtype),
            _join([part[1] for part in parts], np.dtype(np.int64)),
            _join([part[2] for part in parts], np.dtype(bool)),
        )

    def count_unknown(self, ids: NDArray[Any]) -> int:
        """How many of `ids` are the unknown token."""
        unknown = self._tokenizer.unk
        return 0 if unknown is None else int(np.count_nonzero(ids == unknown))

    def _encode(
        self, texts: Sequence[str]
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]:
        """Ids of all texts in a row, ids of each text, and maybe which ids start a word."""
        nothing = np.zeros(0, bool)
        if self._segmenter is None:
            ids, lengths = self._tokenizer.encode_flat(texts)
            return ids.astype(self._dtype), lengths, nothing
        encoded = self._tokenizer.encode_ends(texts)
        lengths = np.array([len(numbers) for numbers, _ in encoded], np.int64)
        flat = np.array([number for numbers, _ in encoded for number in numbers], self._dtype)
        starts = [
            word_starts(text, self._segmenter(text), ends)
            for text, (_, ends) in zip(texts, encoded, strict=True)
        ]
        return flat, lengths, np.concatenate([nothing, *starts])


def sentence_columns(
    ids: NDArray[Any], lengths: NDArray[np.int64], counts: NDArray[np.int64]
) -> dict[str, Ragged]:
    """Columns of documents with `counts` sentences each, of `lengths` tokens each."""
    ends = np.cumsum(lengths)
    last = np.cumsum(counts) - 1
    sizes = np.diff(ends[last], prepend=0)
    relative = ends - np.repeat(ends[last] - sizes, counts)
    return {
        MAIN: Ragged(ids, sizes),
        "sentences": Ragged(relative.astype(np.uint32), counts.astype(np.int64)),
    }


def note(remarks: Counter[str], reason: str, count: int) -> None:
    """Count something that was left out or changed, if there is any."""
    if count:
        remarks[reason] += count


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Texts in portions of bounded size."""
    start = size = 0
    for number, text in enumerate(texts):
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield texts[start : number + 1]
            start, size = number + 1, 0
    if start < len(texts):
        yield texts[start:]


def _join(parts: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
