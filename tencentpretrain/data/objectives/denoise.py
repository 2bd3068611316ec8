"""What objectives share that restore a corrupted text with an encoder-decoder."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.objectives.base import Example
from tencentpretrain.data.objectives.pairs import cut_chunks
from tencentpretrain.data.objectives.records import end_token
from tencentpretrain.data.objectives.seq2seq import Seq2SeqConfig, Seq2SeqObjective
from tencentpretrain.data.packing import Documents, Integers

Edge = Literal["pad", "bos", "cls", "eos", "sep"]


class DenoiseObjective(Seq2SeqObjective):
    """Rows of a corrupted text, and of what was taken from it; both end with [eos]."""

    needs: ClassVar[tuple[str, ...]] = ()
    config: Seq2SeqConfig

    def edge(self, role: Edge) -> int:
        """Id of a special token at an end of a row; vocabularies like BERT's have others for two.

        Raises:
            DataError: if the tokenizer has neither it nor the one that is used alike.
        """
        if role == "eos":
            return end_token(self)
        has_only_cls = self.tokenizer.bos is None and self.tokenizer.cls is not None
        return self.special("cls" if role == "bos" and has_only_cls else role)

    @staticmethod
    def pair(source: Integers, target: Integers, start: int) -> Example:
        """The example that reads `source` [S] and, after `start`, writes all of `target` [T]."""
        return {
            "ids": source,
            "target_ids": np.concatenate(([start], target[:-1])),
            "labels": target,
            "index": np.arange(len(target)),
        }


class SentenceRows:
    """Documents cut into rows of as many whole sentences as fit, the same in every epoch.

    Args:
        shards: where the documents are.
        documents: numbers of those to use.
        limit: greatest length of a row, in tokens; longer sentences are cut.
        seed: of the run.
    """

    def __init__(self, shards: Documents, documents: Integers, limit: int, seed: int) -> None:
        sentence_ends, document_ends = shards.sentence_boundaries()
        used = np.zeros(shards.documents, np.bool_)
        used[documents] = True
        self._shards = shards
        self._sentence_ends = sentence_ends
        self._begins = np.concatenate(([0], document_ends))
        self._chunks = cut_chunks(sentence_ends, document_ends, used, limit, 0.0, seed)

    def __len__(self) -> int:
        return len(self._chunks.starts)

    def read(self, index: int) -> tuple[NDArray[Any], Integers]:
        """Tokens of row `index` [N], and where its sentences end in it; the last end is N."""
        start, stop = int(self._chunks.starts[index]), int(self._chunks.stops[index])
        document = int(self._chunks.documents[index])
        begin = int(self._begins[document])
        first, last = self._sentence_ends.searchsorted((start, stop), side="right")
        inner = self._sentence_ends[first:last]
        # Empty sentences end where others do.
        ends = np.unique(np.append(inner[inner < stop], stop)) - start
        return self._shards.read(document, start - begin, stop - begin), ends
