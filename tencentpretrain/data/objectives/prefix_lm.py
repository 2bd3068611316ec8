"""Pairs of texts in one row: the second is written, the first is seen as a whole.

Prefix language modelling (Dong et al., 2019, UniLM, section 2.3; Raffel et al., 2020, T5,
section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Objective, ObjectiveConfig
from tencentpretrain.data.objectives.records import (
    Records,
    end_token,
    keep,
    require_column,
    require_one_tokenizer,
    tell_cut,
)
from tencentpretrain.data.shard_format import TARGET
from tencentpretrain.types import Batch


@OBJECTIVES.register("prefix_lm")
class PrefixLmObjective(Objective):
    """Rows "source [sep] target" with labels "target [eos]"; the source is the layout's prefix.

    A row has no position for [eos], behind which there is nothing to predict.
    """

    class Config(ObjectiveConfig):
        overlong: Literal["cut", "drop"] = "cut"
        """What to do with a pair that does not fit: cut the beginning of the source, or drop it;
        where the target alone does not fit, it is dropped in any case."""
        bos: bool = False
        """Begin rows with the tokenizer's [bos]."""
        supervise_source: bool = False
        """Learn the source too, each token from those before it; rows then have no prefix."""

    config: Config
    shards: Records
    supervises = ("lm",)
    needs = ()

    def _prepare(self) -> None:
        require_column(self, TARGET)
        require_one_tokenizer(self, self.shards)
        config, tokenizer = self.config, self.tokenizer
        self._end = end_token(self)
        self._between = self._end if tokenizer.sep is None else tokenizer.sep
        self._start = np.array([self.special("bos")] if config.bos else [], np.int64)
        self._room = config.length - len(self._start) - 1
        sources = self.shards.lengths()[self.documents]
        targets = self.shards.lengths(TARGET)[self.documents]
        least = sources if config.overlong == "drop" else np.minimum(sources, 1)
        fits = least + targets <= self._room
        keep(self, fits, f"pairs, which do not fit length={config.length}")
        cut = int((sources + targets > self._room)[fits].sum())
        tell_cut(self, cut, f"sources at their beginning to length={config.length}")

    def __len__(self) -> int:
        return len(self.documents)

    def make(self, epoch: int, index: int) -> Example:
        document = int(self.documents[index])
        target = self.shards.column(TARGET, document)
        source = self.shards.read(document)
        source = source[max(0, len(source) + len(target) - self._room) :]
        ids = np.concatenate(
            [self._start, source, [self._between], target, [self._end]], dtype=np.int64
        )
        prefix = len(ids) - len(target) - 1
        first = 0 if self.config.supervise_source else prefix - 1
        return {
            "ids": ids[:-1],
            "segments": (np.arange(len(ids) - 1) >= prefix).astype(np.int64),
            "index": np.arange(first, len(ids) - 1),
            "labels": ids[first + 1 :],
            "prefix": np.array([prefix]),
        }

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        if not self.config.supervise_source:
            prefix = np.concatenate([example["prefix"] for example in examples])
            batch.streams["src"].layout.prefix = torch.from_numpy(prefix)
        return batch
