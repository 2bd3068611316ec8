"""Examples with a source and a target row, for encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tencentpretrain.config import PositiveInt
from tencentpretrain.data.objectives.base import Example, Objective, ObjectiveConfig, supervision
from tencentpretrain.data.rows import Grid
from tencentpretrain.types import SRC, TGT, Batch, Stream


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
        source, tokens = self.source(examples)
        grid = self.grid(examples, "target_ids", self.config.target_length)
        batch = Batch({SRC: source}, tokens=tokens)
        return with_targets(batch, examples, grid, self.pads[TGT], self.supervises[0])

    def source(self, examples: Sequence[Example]) -> tuple[Stream, int]:
        """What the encoder reads, and its number of valid positions."""
        grid = self.grid(examples, "ids", self.config.length)
        ids = grid.fill([example["ids"] for example in examples], self.pads[SRC])
        return Stream({"ids": ids}, grid.layout()), grid.tokens

    @property
    def pads(self) -> dict[str, int]:
        """Id of padding in each stream."""
        pad = self.tokenizer.pad or 0
        return {SRC: pad, TGT: pad}


def with_targets(
    batch: Batch, examples: Sequence[Example], grid: Grid, padding: int, target: str
) -> Batch:
    """`batch` with what the decoder reads and what `target` learns from it.

    Args:
        batch: With the source.
        examples: As those of `Seq2SeqObjective`.
        grid: For their "target_ids".
        padding: Id of padding.
        target: Name of the labels.
    """
    ids = grid.fill([example["target_ids"] for example in examples], padding)
    return Batch(
        streams={**batch.streams, TGT: Stream({"ids": ids}, grid.layout())},
        labels={target: supervision(examples, grid)},
        tokens=batch.tokens + grid.tokens,
    )
