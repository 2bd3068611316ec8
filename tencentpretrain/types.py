"""The values that travel between the parts of a model, the data and the trainer.

Shapes: B rows, S positions of a row, D model width, K supervised positions, T valid positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import torch
from torch import Tensor

IGNORE: Final = -100
"""The label of a position that is not supervised."""


SRC: Final = "src"
"""Name of the stream that the encoder reads."""
TGT: Final = "tgt"
"""Name of the stream that the decoder reads."""


def map_tensors(value: Any, function: Any) -> Any:
    """Apply `function` to every tensor inside nested dataclasses, dictionaries and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: map_tensors(getattr(value, f.name), function) for f in dataclasses.fields(value)
        }
        return type(value)(**fields)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map_tensors(item, function) for item in value)
    return value


@dataclass
class Layout:
    """What each position of a [B, S] grid is.

    Args:
        valid: [B, S] bool; False is padding.
        tokens: [T] flat indices of the valid positions, counted while collating so that no
            device needs to be asked for them; None where the grid has no padding.
        documents: [B, S] int; attention stays within one document (packed rows).
        prefix: [B] int; number of leading positions that all positions may see (prefix LM).
        lengths: B numbers of valid positions, which come first in each row; for embeddings that
            change the length of rows, so that they need not ask a device either.
    """

    valid: Tensor
    tokens: Tensor | None = None
    documents: Tensor | None = None
    prefix: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    @property
    def is_full(self) -> bool:
        """Whether the grid is known to hold no padding."""
        return self.tokens is None

    @property
    def count(self) -> int:
        """Number of valid positions, known on the host."""
        return self.valid.numel() if self.tokens is None else len(self.tokens)

    @classmethod
    def of(cls, valid: Tensor, **kwargs: Any) -> Self:
        """Make a layout from a CPU mask `valid` [B, S], finding the valid positions."""
        is_full = bool(valid.all())
        return cls(valid, None if is_full else valid.flatten().nonzero().squeeze(1), **kwargs)


@dataclass
class Stream:
    """One input of a model before embedding: named tensors, such as "ids" [B, S], and a layout."""

    inputs: dict[str, Tensor]
    layout: Layout


def split_rows(stream: Stream, size: int) -> list[Stream]:
    """`stream` [B, ...] in parts of `size` rows.

    Where it has padding, and its layout no lengths, this waits for the device.
    """
    layout, rows = stream.layout, len(stream.layout.valid)
    starts = range(0, rows, size)
    tokens: Sequence[Tensor | None] = [None] * len(starts)
    if layout.tokens is not None:
        counts = layout.lengths or [int(n) for n in layout.valid.sum(1).tolist()]
        parts = layout.tokens.split([sum(counts[start : start + size]) for start in starts])
        width = layout.valid.shape[1]
        tokens = [part - start * width for part, start in zip(parts, starts, strict=True)]
    split = []
    for start, flat in zip(starts, tokens, strict=True):
        chosen = slice(start, start + size)
        part = Layout(
            layout.valid[chosen],
            flat,
            None if layout.documents is None else layout.documents[chosen],
            None if layout.prefix is None else layout.prefix[chosen],
            None if layout.lengths is None else layout.lengths[chosen],
        )
        inputs = {name: tensor[chosen] for name, tensor in stream.inputs.items()}
        split.append(Stream(inputs, part))
    return split


@dataclass
class Labels:
    """What one target is supervised with.

    Args:
        values: [K] class or token ids (`IGNORE` entries do not count); or, where `index` is None,
            labels on the whole grid of the target ([B] for rows, [B, S] for positions).
        index: [K] flat positions in the [B * S] grid that `values` belong to. Collating computes
            it on the CPU, so that selecting supervised positions never waits for a device.
        width: S of the grid that `index` counts in, where the embedding puts something behind the
            S positions of a row; None is that of the states.
    """

    values: Tensor
    index: Tensor | None = None
    width: int | None = None

    @property
    def supervised(self) -> Tensor:
        """Which labels count, bool [K]; all of them where they are probabilities of classes."""
        if self.values.is_floating_point():
            return torch.ones(len(self.values), dtype=torch.bool, device=self.values.device)
        return self.values.flatten() != IGNORE

    def rows(self, rows: int, width: int) -> Tensor:
        """Row [K] of a batch of `rows` that each label belongs to, given the `width` of states."""
        if self.index is not None:
            return self.index // (self.width or width)
        count = len(self.values) if self.values.is_floating_point() else self.values.numel()
        return torch.arange(count, device=self.values.device) // (count // rows)


@dataclass
class Origin:
    """Which of several sources each row of a batch is from: its number [B] among `names`."""

    names: tuple[str, ...]
    numbers: Tensor


@dataclass
class Batch:
    """Examples put together: everything that a model and its targets read.

    Args:
        streams: "src" and maybe "tgt"; for two towers the names of the towers.
        labels: supervision by target name.
        tokens: number of valid positions in all streams, known on the host.
        extras: what annotators or data add (teacher output, image codes, soft labels).
        origin: of the rows, where they are from several sources.
    """

    streams: dict[str, Stream]
    labels: dict[str, Labels] = field(default_factory=dict)
    tokens: int = 0
    extras: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None

    def to(self, device: torch.device) -> Batch:
        """Copy to `device` without waiting for the copy."""
        if device.type == "cpu":
            return self
        moved: Batch = map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))
        return moved

    def pin_memory(self) -> Batch:
        """Called by the data loader: page-locked copies make `to` asynchronous."""
        pinned: Batch = map_tensors(self, lambda tensor: tensor.pin_memory())
        return pinned


@dataclass(frozen=True)
class Want:
    """What the targets ask an encoder to return beside its last states."""

    layers: tuple[int, ...] = ()
    """Numbers of the layers whose output is wanted; 0 is the embedding."""
    attentions: tuple[int, ...] = ()
    """Numbers of the layers, counted from 1, whose attention probabilities are wanted."""
    projections: tuple[int, ...] = ()
    """Numbers of the layers, counted from 1, whose queries, keys and values are wanted."""

    def __or__(self, other: Want) -> Want:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Want(*(tuple(sorted({*mine, *theirs})) for mine, theirs in pairs))


NOTHING: Final = Want()


@dataclass
class Hidden:
    """What an embedding, encoder or decoder returns: states [B, S, D] and their layout.

    What was wanted beside is in the order of the wish's numbers. Projections are queries, keys and
    values [B, S, W], W the width of all heads, before positions turn them.
    """

    states: Tensor
    layout: Layout
    layers: tuple[Tensor, ...] = ()
    attentions: tuple[Tensor, ...] = ()
    projections: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()


@dataclass
class ModelOutput:
    """What targets read: `hidden` of the last part, and `encoded` by the name of the stream.

    `want` is what was asked for, in whose order the layers of each `Hidden` lie.
    """

    hidden: Hidden
    encoded: dict[str, Hidden]
    want: Want = NOTHING


@dataclass
class Ratio:
    """What is additive over micro-batches and ranks: a total [] and the count [] it is over.

    Args:
        total: The sum.
        count: How many units it is over.
        each: What it is the sum of, without a gradient and in the order of a target's labels, 0
            where they are ignored; None where that is not known, as of what was added up.
    """

    total: Tensor
    count: Tensor
    each: Tensor | None = None

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.total + other.total, self.count + other.count)

    def detach(self) -> Ratio:
        return Ratio(self.total.detach(), self.count.detach())

    @property
    def value(self) -> Tensor:
        """Total over count, in fp32; zero where nothing was counted."""
        return self.total / self.count.clamp(min=1)


@dataclass
class TargetOutput:
    """Losses by target name (the trainer minimises their weighted sum) and metrics to report.

    `parts` has the losses of the rows from each source, where there are several.
    """

    losses: dict[str, Ratio]
    metrics: dict[str, Ratio]
    parts: dict[str, TargetOutput] = field(default_factory=dict)
