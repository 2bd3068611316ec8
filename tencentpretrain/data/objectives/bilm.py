"""Language modelling in both directions (Peters et al., 2018, ELMo, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Objective, ObjectiveConfig
from tencentpretrain.data.packing import DocumentStream
from tencentpretrain.types import Batch, Labels, Stream


@OBJECTIVES.register("bilm")
class BilmObjective(Objective):
    """Rows of the stream "[cls] document [sep] [cls] document [sep] ..." with both neighbours.

    Each token is read once an epoch and, within its document, predicted once from what precedes
    it and once from what follows it; the neighbours of a row's ends are labels only. An example
    has its "index" [K] in the grid [S, 2] of directions, flat, as the target `bilm` explains.
    """

    class Config(ObjectiveConfig):
        pack: bool = True
        """Fill rows with as many documents as fit, read as one text; otherwise a row holds one."""

    config: Config
    supervises = ("bilm",)
    needs = ("cls", "sep")

    def _prepare(self) -> None:
        prefix, suffix = (self.special("cls"),), (self.special("sep"),)
        self._stream = DocumentStream(self.shards, self.documents, prefix, suffix)
        lengths = self.shards.lengths()[self.documents]
        self._sizes = lengths[lengths > 0] + len(prefix) + len(suffix)
        self._ends = self._sizes.cumsum()
        self._rows = (-(-self._sizes // self.config.length)).cumsum()

    def __len__(self) -> int:
        if self.config.pack:
            return -(-self._stream.total // self.config.length)
        return int(self._rows[-1]) if len(self._rows) else 0

    def make(self, epoch: int, index: int) -> Example:
        start, count = self._span(epoch, index)
        row = self._stream.read(self._stream.pieces(start - 1, count + 2))
        ids, same = row.ids, row.documents[1:] == row.documents[:-1]
        following, preceding = same[1:].nonzero()[0], same[:-1].nonzero()[0]
        return {
            "ids": ids[1:-1],
            "labels": np.concatenate((ids[2:][following], ids[:-2][preceding])),
            "index": np.concatenate((2 * following, 2 * preceding + 1)),
        }

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad examples to one grid [B, S] on the CPU; the labels lie on its [B, S, 2]."""
        grid = self.grid(examples, "ids", self.config.length)
        ids = grid.fill([example["ids"] for example in examples], self.tokenizer.pad or 0)
        index = [e["index"] + 2 * grid.width * row for row, e in enumerate(examples)]
        labels = Labels(
            torch.from_numpy(np.concatenate([example["labels"] for example in examples])),
            torch.from_numpy(np.concatenate(index)),
            2 * grid.width,
        )
        streams = {"src": Stream({"ids": ids}, grid.layout())}
        return Batch(streams, {self.supervises[0]: labels}, grid.tokens)

    def _span(self, epoch: int, index: int) -> tuple[int, int]:
        """Where row `index` of `epoch` begins in the stream, and its tokens."""
        length, total = self.config.length, self._stream.total
        if self.config.pack:
            start = index * length
            return self._stream.offset(self.seed, epoch) + start, min(length, total - start)
        number = int(self._rows.searchsorted(index, side="right"))
        end = int(self._ends[number])
        before = int(self._rows[number - 1]) if number else 0
        start = end - int(self._sizes[number]) + (index - before) * length
        return start, min(length, end - start)
