"""Masked language modelling over packed documents (Liu et al., 2019, RoBERTa, section 4.2)."""

from __future__ import annotations

import numpy as np

from tencentpretrain.data.masking import Masker, MaskingConfig
from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Objective, ObjectiveConfig
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import DocumentPieces, DocumentStream, Flags


class PackedRows:
    """[cls] and `length` - 1 tokens of "[cls] document [sep] [cls] document [sep] ...".

    A row that begins where a document does holds [cls] twice, so that all rows have one length.
    """

    def __init__(self, stream: DocumentStream, cls: int, length: int, seed: int) -> None:
        self._stream = stream
        self._cls = cls
        self._stride = length - 1
        self._seed = seed

    def __len__(self) -> int:
        return -(-self._stream.total // self._stride)

    def row(self, epoch: int, index: int) -> tuple[Example, Flags | None]:
        """Tokens with their documents and positions; where stored words start."""
        stream = self._stream
        start = index * self._stride
        count = min(self._stride, stream.total - start)
        pieces = stream.pieces(stream.offset(self._seed, epoch) + start, count)
        row = stream.read(pieces, before=(self._cls,))
        words = stream.word_starts(pieces)
        return row._asdict(), None if words is None else np.concatenate(([True], words))


class SingleRows:
    """[cls], a piece of one document, [sep]; the pieces are the same in every epoch."""

    def __init__(self, pieces: DocumentPieces, cls: int, sep: int) -> None:
        self._pieces = pieces
        self._cls = cls
        self._sep = sep

    def __len__(self) -> int:
        return len(self._pieces)

    def row(self, epoch: int, index: int) -> tuple[Example, Flags | None]:
        """Tokens; where stored words start."""
        text, words = self._pieces.read(index)
        ids = np.concatenate(([self._cls], text, [self._sep]), dtype=np.int64)
        return {"ids": ids}, None if words is None else np.concatenate(([True], words, [True]))


@OBJECTIVES.register("mlm")
class MlmObjective(Objective):
    """Full rows of several documents with masks.

    The rows of an epoch partition a stream that is a circle and begins elsewhere in every epoch:
    each token is read once an epoch, and documents are cut at other places in the next.
    """

    class Config(MaskingConfig, ObjectiveConfig):
        pack: bool = True
        """Fill rows with as many documents as fit; otherwise a row holds a piece of one."""
        isolate_documents: bool = True
        """Keep attention inside a document of a packed row, and count positions from its start."""

    config: Config
    supervises = ("mlm",)

    def _prepare(self) -> None:
        config, cls, sep = self.config, self.special("cls"), self.special("sep")
        self._mask = Masker(config, self.tokenizer)
        self._rows: PackedRows | SingleRows
        if config.pack:
            stream = DocumentStream(self.shards, self.documents, prefix=(cls,), suffix=(sep,))
            self._rows = PackedRows(stream, cls, config.length, self.seed)
        else:
            pieces = DocumentPieces(self.shards, self.documents, config.length - 2)
            self._rows = SingleRows(pieces, cls, sep)

    def __len__(self) -> int:
        return len(self._rows)

    def make(self, epoch: int, index: int) -> Example:
        example, word_starts = self._rows.row(epoch, index)
        if not self.config.isolate_documents:
            example = {"ids": example["ids"]}
        original = example["ids"]
        random = generator(self.seed, epoch, index)
        ids, chosen = self._mask(original, random, word_starts)
        return example | {"ids": ids, "index": chosen, "labels": original[chosen]}
