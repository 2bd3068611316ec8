"""Labelled texts, as for the pre-training of classifiers on much labelled data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tencentpretrain.data.masking import Masker, MaskingConfig
from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Objective, ObjectiveConfig
from tencentpretrain.data.objectives.records import Records, require_column, tell_cut
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import Flags, Integers
from tencentpretrain.data.shard_format import LABEL
from tencentpretrain.types import Batch, Labels, Stream


class LabelledRow(NamedTuple):
    """[cls] a [sep], or [cls] a [sep] b [sep].

    Args:
        ids: [S] token ids.
        segments: [S] 1 in the second text and its [sep].
        word_starts: [S] where words of the stored segmentation start; None without one.
        label: number of the label.
    """

    ids: Integers
    segments: Integers
    word_starts: Flags | None
    label: int


class LabelledObjective(Objective):
    """Makes rows of one or two texts; of two that do not fit the longer one is cut first."""

    shards: Records

    def _prepare(self) -> None:
        require_column(self, LABEL)
        self._cls, self._sep = self.special("cls"), self.special("sep")
        texts = self.shards.lengths("sentences")[self.documents]
        sizes = self.shards.lengths()[self.documents] + 1 + texts
        cut = int((sizes > self.config.length).sum())
        tell_cut(self, cut, f"examples to length={self.config.length}")

    def __len__(self) -> int:
        return len(self.documents)

    def row(self, index: int) -> LabelledRow:
        """Row number `index`, the same in every epoch."""
        document = int(self.documents[index])
        ends = self.shards.sentence_ends(document)
        room = self.config.length - 1 - len(ends)
        first, size = int(ends[0]), int(ends[-1])
        second = min(size - first, max(room // 2, room - first))
        halves = [(0, min(first, room - second))]
        if len(ends) > 1:
            halves.append((first, first + second))
        parts: list[NDArray[Any] | list[int]] = [[self._cls]]
        words: list[NDArray[Any] | list[bool]] = [[True]]
        for start, stop in halves:
            parts += [self.shards.read(document, start, stop), [self._sep]]
            starts = self.shards.word_starts(document, start, stop)
            words += [] if starts is None else [starts, [True]]
        ids = np.concatenate(parts, dtype=np.int64)
        segments = (np.arange(len(ids)) >= 2 + halves[0][1]).astype(np.int64)
        word_starts = np.concatenate(words) if len(words) > 1 else None
        return LabelledRow(ids, segments, word_starts, self.shards.label(document))


@OBJECTIVES.register("cls")
class ClsObjective(LabelledObjective):
    """One or two texts with their label: [cls] a [sep], or [cls] a [sep] b [sep]."""

    class Config(ObjectiveConfig):
        pass

    supervises = ("classify",)
    needs = ("cls", "sep")

    def make(self, epoch: int, index: int) -> Example:
        row = self.row(index)
        return {"ids": row.ids, "segments": row.segments, "row_label": np.array([row.label])}

    def collate(self, examples: Sequence[Example]) -> Batch:
        grid = self.grid(examples, "ids", self.config.length)
        inputs = {
            "ids": grid.fill([example["ids"] for example in examples], self.tokenizer.pad or 0),
            "segments": grid.fill([example["segments"] for example in examples], 0),
        }
        return Batch(
            streams={"src": Stream(inputs, grid.layout())},
            labels={"classify": row_labels(examples)},
            tokens=grid.tokens,
        )


@OBJECTIVES.register("cls_mlm")
class ClsMlmObjective(LabelledObjective):
    """The rows of `cls` with masks: both the label and the hidden tokens are learned."""

    class Config(MaskingConfig, ObjectiveConfig):
        pass

    supervises = ("mlm", "classify")

    def _prepare(self) -> None:
        super()._prepare()
        self._mask = Masker(self.config, self.tokenizer)

    def make(self, epoch: int, index: int) -> Example:
        row = self.row(index)
        random = generator(self.seed, epoch, index)
        ids, chosen = self._mask(row.ids, random, row.word_starts)
        return {
            "ids": ids,
            "segments": row.segments,
            "index": chosen,
            "labels": row.ids[chosen],
            "row_label": np.array([row.label]),
        }

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        batch.labels["classify"] = row_labels(examples)
        return batch


def row_labels(examples: Sequence[Example]) -> Labels:
    """The "row_label" of each example [B]."""
    return Labels(torch.from_numpy(np.concatenate([example["row_label"] for example in examples])))
