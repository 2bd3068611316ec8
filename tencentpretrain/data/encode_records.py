"""From records to columns of numbers: pairs, labelled texts and conversations.

Imported by worker processes: nothing here may import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.chat import TEMPLATES, Template
from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.encoded import (
    NO_TOKENS,
    Encoded,
    TextEncoder,
    Tokens,
    note,
    sentence_columns,
)
from tencentpretrain.data.lines import bounded
from tencentpretrain.data.records import Record, read_records
from tencentpretrain.data.segment import Segmenter
from tencentpretrain.data.shard_format import LABEL, MAIN, SUPERVISED, TARGET
from tencentpretrain.data.shard_writer import Ragged
from tencentpretrain.data.slices import Slice
from tencentpretrain.tokenizers.base import Tokenizer

EMPTY_RECORDS: Final = "records without tokens"
PARTS: Final = 4
"""Parts of a turn: before, text, end, behind."""

Columns = tuple[dict[str, Ragged], tuple[str, ...]]
"""Columns by name; and what the values of the column of labels stand for."""


class RecordEncoder(ABC):
    """Reads and tokenises the records of a slice."""

    def __init__(self, corpus: CorpusConfig, encode: TextEncoder) -> None:
        self._corpus = corpus
        self._encode = encode

    def __call__(self, piece: Slice) -> Encoded:
        remarks: Counter[str] = Counter()
        records = list(read_records(piece, self._corpus, remarks))
        columns, labels = self._columns(records, remarks)
        ids = columns[MAIN].values
        return Encoded(
            columns,
            documents=len(columns[MAIN].lengths),
            sentences=len(columns["sentences"].values),
            tokens=len(ids),
            unknown=self._encode.count_unknown(ids),
            consumed=piece.consumed,
            size=len(piece.data),
            remarks=remarks,
            labels=labels,
        )

    @abstractmethod
    def _columns(self, records: Sequence[Record], remarks: Counter[str]) -> Columns:
        """The columns of `records`, of which those without tokens are left out, and the labels."""


class PairEncoder(RecordEncoder):
    """The source in the main column, the target in one of its own."""

    def __init__(
        self, corpus: CorpusConfig, encode: TextEncoder, encode_target: TextEncoder
    ) -> None:
        super().__init__(corpus, encode)
        self._encode_target = encode_target

    def __call__(self, piece: Slice) -> Encoded:
        encoded = super().__call__(piece)
        targets = encoded.columns[TARGET].values
        encoded.target_tokens = len(targets)
        encoded.target_unknown = self._encode_target.count_unknown(targets)
        return encoded

    def _columns(self, records: Sequence[Record], remarks: Counter[str]) -> Columns:
        sources = whole(self._encode, [record.texts[0] for record in records], remarks)
        targets = whole(self._encode_target, [record.texts[1] for record in records], remarks)
        kept = (sources.lengths > 0) & (targets.lengths > 0)
        note(remarks, EMPTY_RECORDS, int((~kept).sum()))
        sources, targets = _only(sources, kept), _only(targets, kept)
        columns = sentence_columns(sources.ids, sources.lengths, np.ones_like(sources.lengths))
        return columns | {TARGET: Ragged(targets.ids, targets.lengths)}, ()


class LabelEncoder(RecordEncoder):
    """One or two texts, a sentence each, and a label: its number in this slice."""

    def __init__(self, corpus: CorpusConfig, encode: TextEncoder, has_words: bool) -> None:
        super().__init__(corpus, encode)
        self._has_words = has_words

    def _columns(self, records: Sequence[Record], remarks: Counter[str]) -> Columns:
        texts = list(chain.from_iterable(record.texts for record in records))
        tokens = whole(self._encode, texts, remarks)
        counts = np.array([len(record.texts) for record in records], np.int64)
        owners = np.arange(len(records)).repeat(counts)
        first = np.cumsum(counts) - counts
        has_tokens = tokens.lengths > 0
        kept = has_tokens[first]
        note(remarks, EMPTY_RECORDS, int((~kept).sum()))
        taken = has_tokens & kept[owners]
        note(remarks, NO_TOKENS, int((~has_tokens & kept[owners]).sum()))
        tokens = _only(tokens, taken)
        counts = np.bincount(owners[taken], minlength=len(records))[kept]
        columns = sentence_columns(tokens.ids, tokens.lengths, counts)
        if self._has_words:
            columns["words"] = Ragged(tokens.starts, columns[MAIN].lengths)
        labels = [record.label for record, is_kept in zip(records, kept, strict=True) if is_kept]
        numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        values = np.array([numbers[label] for label in labels], np.int32)
        return columns | {LABEL: Ragged(values, np.ones(len(labels), np.int64))}, tuple(numbers)


class ChatEncoder(RecordEncoder):
    """Conversations as a template writes them, a sentence each turn, and what is to be learned."""

    def __init__(self, corpus: CorpusConfig, encode: TextEncoder, template: Template) -> None:
        super().__init__(corpus, encode)
        self._template = template

    def _columns(self, records: Sequence[Record], remarks: Counter[str]) -> Columns:
        turns = [self._template.turns(record.roles, record.texts) for record in records]
        flat = list(chain.from_iterable(turns))
        tokens = whole(self._encode, [turn.text for turn in flat], remarks)
        texts = np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])
        parts: list[Any] = []
        for turn, text in zip(flat, texts, strict=False):  # of no text there is one empty part
            parts += (turn.before, text, turn.end, turn.behind)
        ids = np.concatenate([tokens.ids[:0], *parts], dtype=tokens.ids.dtype, casting="unsafe")
        sizes = np.array([len(part) for part in parts], np.int64).reshape(-1, PARTS)
        # [turns, parts] the text and its end, where an assistant wrote them
        flags = np.zeros(sizes.shape, bool)
        flags[:, 1:3] = np.array([turn.is_learned for turn in flat], bool)[:, None]
        supervised = flags.ravel().repeat(sizes.ravel())
        lengths = sizes.sum(1)
        owners = np.arange(len(records)).repeat(np.array([len(turn) for turn in turns], np.int64))
        counts = np.bincount(owners[lengths > 0], minlength=len(records))
        columns = sentence_columns(ids, lengths[lengths > 0], counts)
        return columns | {SUPERVISED: Ragged(supervised, columns[MAIN].lengths)}, ()


def record_encoder(
    corpus: CorpusConfig,
    tokenizer: Tokenizer,
    target_tokenizer: Tokenizer | None,
    segmenter: Segmenter | None,
) -> RecordEncoder:
    """The encoder of a corpus whose content is not text.

    Raises:
        DataError: if the tokenizer lacks what the template of conversations needs.
    """
    encode = TextEncoder(tokenizer, segmenter)
    if corpus.content == "pair":
        return PairEncoder(corpus, encode, TextEncoder(target_tokenizer or tokenizer))
    if corpus.content == "label":
        return LabelEncoder(corpus, encode, segmenter is not None)
    return ChatEncoder(corpus, encode, TEMPLATES[corpus.template](tokenizer))


def whole(encode: TextEncoder, texts: Sequence[str], remarks: Counter[str]) -> Tokens:
    """Tokens of `texts`; those too long to be tokenised at once are put together again."""
    parts = [list(bounded(text, remarks)) for text in texts]
    tokens = encode(list(chain.from_iterable(parts)))
    owners = np.arange(len(texts)).repeat(np.array([len(part) for part in parts], np.int64))
    lengths = np.zeros(len(texts), np.int64)
    np.add.at(lengths, owners, tokens.lengths)
    return Tokens(tokens.ids, lengths, tokens.starts)


def _only(tokens: Tokens, kept: NDArray[np.bool_]) -> Tokens:
    """The tokens of those texts that are `kept`."""
    if kept.all():
        return tokens
    chosen = kept.repeat(tokens.lengths)
    starts = tokens.starts[chosen] if len(tokens.starts) else tokens.starts
    return Tokens(tokens.ids[chosen], tokens.lengths[kept], starts)
