"""Pairs of texts that belong together, each in a row of its own (Reimers and Gurevych, 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Objective, ObjectiveConfig
from tencentpretrain.data.objectives.records import (
    Records,
    require_column,
    require_one_tokenizer,
    tell_cut,
)
from tencentpretrain.data.packing import Integers
from tencentpretrain.data.shard_format import TARGET
from tencentpretrain.types import Batch, Stream

SPECIALS = 2
"""Tokens of a row beside its text."""


@OBJECTIVES.register("pairs")
class PairsObjective(Objective):
    """Rows [cls] a [sep] in the stream "src" and [cls] b [sep] in the stream "pair".

    Row i of one stream belongs to row i of the other; what else is in the batch serves as the
    contrast, so that there are no labels.
    """

    class Config(ObjectiveConfig):
        pass

    config: Config
    shards: Records
    supervises = ("contrast",)
    needs = ("cls", "sep")
    streams = ("src", "pair")

    def _prepare(self) -> None:
        require_column(self, TARGET)
        require_one_tokenizer(self, self.shards)
        self._cls, self._sep = self.special("cls"), self.special("sep")
        self._room = self.config.length - SPECIALS
        sizes = [self.shards.lengths()[self.documents], self.shards.lengths(TARGET)[self.documents]]
        cut = int((np.maximum(*sizes) > self._room).sum())
        tell_cut(self, cut, f"pairs to length={self.config.length}")

    def __len__(self) -> int:
        return len(self.documents)

    def make(self, epoch: int, index: int) -> Example:
        document = int(self.documents[index])
        return {
            "ids": self._row(self.shards.read(document, 0, self._room)),
            "pair_ids": self._row(self.shards.column(TARGET, document, 0, self._room)),
        }

    def collate(self, examples: Sequence[Example]) -> Batch:
        streams: dict[str, Stream] = {}
        tokens = 0
        for name, key in (("src", "ids"), ("pair", "pair_ids")):
            grid = self.grid(examples, key, self.config.length)
            ids = grid.fill([example[key] for example in examples], self.tokenizer.pad or 0)
            streams[name] = Stream({"ids": ids}, grid.layout())
            tokens += grid.tokens
        return Batch(streams=streams, tokens=tokens)

    def _row(self, text: NDArray[Any]) -> Integers:
        return np.concatenate(([self._cls], text, [self._sep]), dtype=np.int64)
