"""Language modelling: each token from those before it (Radford et al., 2019, GPT-2)."""

from __future__ import annotations

import numpy as np

from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Objective, ObjectiveConfig
from tencentpretrain.data.packing import DocumentStream


@OBJECTIVES.register("lm")
class LmObjective(Objective):
    """Full rows of the stream "document [eos] document [eos] ...", each token with its next one.

    The rows of an epoch partition the stream, a circle that begins elsewhere in every epoch: each
    token is read once and predicted once. Only the first token behind an [eos] is not predicted
    where documents are isolated, since nothing that the model sees tells it.
    """

    class Config(ObjectiveConfig):
        isolate_documents: bool = True
        """Keep attention and prediction inside a document, and count positions from its start."""
        bos: bool = False
        """Begin documents with the tokenizer's [bos], so that their first token is predicted."""

    config: Config
    supervises = ("lm",)
    needs = ()

    def _prepare(self) -> None:
        # A BERT vocabulary has no [eos]; its [sep] ends a text just as well.
        has_only_sep = self.tokenizer.eos is None and self.tokenizer.sep is not None
        end = self.special("sep" if has_only_sep else "eos")
        start = (self.special("bos"),) if self.config.bos else ()
        self._stream = DocumentStream(self.shards, self.documents, prefix=start, suffix=(end,))

    def __len__(self) -> int:
        return -(-self._stream.total // self.config.length)

    def make(self, epoch: int, index: int) -> Example:
        stream, length = self._stream, self.config.length
        start = index * length
        # One token more than the row has: the label of its last.
        count = min(length, stream.total - start) + 1
        ids, documents, positions = stream.read(
            stream.pieces(stream.offset(self.seed, epoch) + start, count)
        )
        if not self.config.isolate_documents:
            return {"ids": ids[:-1], "labels": ids[1:], "index": np.arange(count - 1)}
        predicted = (documents[1:] == documents[:-1]).nonzero()[0]
        return {
            "ids": ids[:-1],
            "documents": documents[:-1],
            "positions": positions[:-1],
            "labels": ids[1:][predicted],
            "index": predicted,
        }
