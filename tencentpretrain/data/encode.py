"""From a slice of a corpus to columns of numbers: the work of one worker of `preprocess.py`.

Imported by worker processes: nothing here may import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.documents import EMPTY, read_documents
from tencentpretrain.data.segment import Segmenter, build_segmenter, word_starts
from tencentpretrain.data.shard_format import MAIN, token_dtype
from tencentpretrain.data.shard_writer import Ragged
from tencentpretrain.data.slices import Slice
from tencentpretrain.registry import load_plugins
from tencentpretrain.tokenizers.base import Tokenizer

BATCH_CHARACTERS: Final = 1 << 18
"""Characters that are tokenised at once; the library keeps a hundred bytes and more for each."""
NO_TOKENS: Final = "sentences without tokens"


@dataclass
class Encoded:
    """What a slice became.

    Args:
        columns: values of its documents.
        remarks: counts of what was left out or changed, by reason.
        consumed: bytes on the disk that the slice stood for.
        size: bytes of text in it.
    """

    columns: dict[str, Ragged]
    documents: int
    sentences: int
    tokens: int
    unknown: int
    consumed: int
    size: int
    remarks: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class EncoderFactory:
    """Makes the encoder of one worker process; small enough to be sent there."""

    tokenizer: Tokenizer
    corpus: CorpusConfig
    segmenter: str
    plugins: tuple[str, ...]

    def __call__(self) -> SliceEncoder:
        load_plugins(self.plugins)
        return SliceEncoder(self.tokenizer, self.corpus, build_segmenter(self.segmenter))


class SliceEncoder:
    """Reads, tokenises and maybe segments the documents of a slice."""

    def __init__(
        self, tokenizer: Tokenizer, corpus: CorpusConfig, segmenter: Segmenter | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._corpus = corpus
        self._segmenter = segmenter
        self._dtype = np.dtype(token_dtype(tokenizer.vocab_size))

    def __call__(self, piece: Slice) -> Encoded:
        remarks: Counter[str] = Counter()
        documents = list(read_documents(piece, self._corpus, remarks))
        texts = [text for document in documents for text in document]
        parts = [self._encode(batch) for batch in _batches(texts)]
        ids = _join([part[0] for part in parts], self._dtype)
        lengths = _join([part[1] for part in parts], np.dtype(np.int64))
        # [sentences with tokens] the document of each
        owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
        owners, lengths = owners[lengths > 0], lengths[lengths > 0]
        counts = np.bincount(owners, minlength=len(documents))
        _note(remarks, NO_TOKENS, len(texts) - len(lengths))
        _note(remarks, EMPTY, int((counts == 0).sum()))
        counts = counts[counts > 0]
        columns = _columns(ids, lengths, counts)
        if self._segmenter is not None:
            columns["words"] = Ragged(
                _join([part[2] for part in parts], np.dtype(bool)), columns[MAIN].lengths
            )
        unknown = self._tokenizer.unk
        return Encoded(
            columns,
            documents=len(counts),
            sentences=len(lengths),
            tokens=len(ids),
            unknown=0 if unknown is None else int(np.count_nonzero(ids == unknown)),
            consumed=piece.consumed,
            size=len(piece.data),
            remarks=remarks,
        )

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


def _columns(
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


def _note(remarks: Counter[str], reason: str, count: int) -> None:
    if count:
        remarks[reason] += count
