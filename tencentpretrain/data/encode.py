"""From a slice of a corpus to columns of numbers: the work of one worker of `preprocess.py`.

Imported by worker processes: nothing here may import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.documents import EMPTY, read_documents
from tencentpretrain.data.encode_records import record_encoder
from tencentpretrain.data.encoded import NO_TOKENS, Encoded, TextEncoder, note, sentence_columns
from tencentpretrain.data.segment import Segmenter, build_segmenter
from tencentpretrain.data.shard_format import MAIN
from tencentpretrain.data.shard_writer import Ragged
from tencentpretrain.data.slices import Slice
from tencentpretrain.registry import load_plugins
from tencentpretrain.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class EncoderFactory:
    """Makes the encoder of one worker process; small enough to be sent there."""

    tokenizer: Tokenizer
    corpus: CorpusConfig
    segmenter: str = "none"
    plugins: tuple[str, ...] = ()
    target_tokenizer: Tokenizer | None = None

    def __call__(self) -> Callable[[Slice], Encoded]:
        load_plugins(self.plugins)
        segmenter = build_segmenter(self.segmenter)
        if self.corpus.content == "text":
            return SliceEncoder(self.tokenizer, self.corpus, segmenter)
        return record_encoder(self.corpus, self.tokenizer, self.target_tokenizer, segmenter)


class SliceEncoder:
    """Reads, tokenises and maybe segments the documents of a slice."""

    def __init__(
        self, tokenizer: Tokenizer, corpus: CorpusConfig, segmenter: Segmenter | None = None
    ) -> None:
        self._encode = TextEncoder(tokenizer, segmenter)
        self._corpus = corpus
        self._has_words = segmenter is not None

    def __call__(self, piece: Slice) -> Encoded:
        remarks: Counter[str] = Counter()
        documents = list(read_documents(piece, self._corpus, remarks))
        texts = [text for document in documents for text in document]
        tokens = self._encode(texts)
        # [sentences with tokens] the document of each
        owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
        owners, lengths = owners[tokens.lengths > 0], tokens.lengths[tokens.lengths > 0]
        counts = np.bincount(owners, minlength=len(documents))
        note(remarks, NO_TOKENS, len(texts) - len(lengths))
        note(remarks, EMPTY, int((counts == 0).sum()))
        counts = counts[counts > 0]
        columns = sentence_columns(tokens.ids, lengths, counts)
        if self._has_words:
            columns["words"] = Ragged(tokens.starts, columns[MAIN].lengths)
        return Encoded(
            columns,
            documents=len(counts),
            sentences=len(lengths),
            tokens=len(tokens.ids),
            unknown=self._encode.count_unknown(tokens.ids),
            consumed=piece.consumed,
            size=len(piece.data),
            remarks=remarks,
        )
