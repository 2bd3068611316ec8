"""Examples with a source and a target row, for encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tencentpretrain.config import PositiveInt
from tencentpretrain.data.objectives.base import Example, Objective, ObjectiveConfig, supervision
from tencentpretrain.types import Batch, Stream


class Seq2SeqConfig(ObjectiveConfig):
    """Keys of the objectives with a target row."""

    target_length: PositiveInt = 128
    """Greatest length of a target row, in tokens, special tokens included."""


class Seq2SeqObjective(Objective):
    """Makes examples with two rows.

    An example holds "ids" [S], the source; "target_ids" [T], what the decoder reads; and "labels"
    [K] at the positions "index" [K] of the target.
    """

    supervises = ("lm",)
    reads_targets: ClassVar[bool] = False
    """Whether the target row is the second text of a stored pair, which may have a tokenizer of its
    own; otherwise it is made of the same text as the source."""
    config: Seq2SeqConfig

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad sources and targets to one grid each, on the CPU."""
        streams: dict[str, Stream] = {}
        grids = {
            "src": self.grid(examples, "ids", self.config.length),
            "tgt": self.grid(examples, "target_ids", self.config.target_length),
        }
        for (name, grid), key in zip(grids.items(), ("ids", "target_ids"), strict=True):
            padding = self.pads[name]
            ids = grid.fill([example[key] for example in examples], padding)
            streams[name] = Stream({"ids": ids}, grid.layout())
        return Batch(
            streams=streams,
            labels={self.supervises[0]: supervision(examples, grids["tgt"])},
            tokens=sum(grid.tokens for grid in grids.values()),
        )

    @property
    def pads(self) -> dict[str, int]:
        """Id of padding in each stream."""
        pad = self.tokenizer.pad or 0
        return {"src": pad, "tgt": pad}
