"""Matching rows among those of a batch (CLIP, Radford et al., 2021; SimCSE, Gao et al., 2021).

Shapes: B rows, D width, P width of the compared vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Final, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tencentpretrain.config import PositiveInt, check
from tencentpretrain.distributed.gather import first_row, gather_rows
from tencentpretrain.errors import DataError
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Target, TargetConfig
from tencentpretrain.targets.classify import PoolingName, pool
from tencentpretrain.targets.cross_entropy import class_loss
from tencentpretrain.types import (
    Batch,
    Hidden,
    Layout,
    ModelOutput,
    Ratio,
    Stream,
    TargetOutput,
    split_rows,
)

Found = TypeVar("Found", Hidden, Stream)
MAX_SCALE: Final = 100.0
"""Greatest factor of the cosines, as in CLIP: beyond it training becomes unstable."""


@TARGETS.register("contrast")
class ContrastTarget(Target):
    """Finds, for each row of one stream, the row of the other one that belongs to it, and back.

    Both are compared by the cosine of pooled states, divided by a temperature. The other rows of
    the micro-batch, in training those of all processes, are what they are told from, so its size
    is part of the task. With `chunk` a large one costs the memory of a small one: only the pooled
    states of each chunk are kept, and the others are computed again for the gradient (GradCache,
    Gao et al., 2021, arXiv:2101.06983).
    """

    class Config(TargetConfig):
        streams: tuple[str, str] = ("src", "pair")
        """The two streams of the batch whose rows belong together."""
        pooling: PoolingName = "mean"
        """What stands for a row: its first or last position, or the mean or maximum of all."""
        other_pooling: PoolingName | None = None
        """The same for the second stream (CLIP: first, and last of texts); null is as pooling."""
        size: PositiveInt | None = None
        """Width that each stream is projected to by its own matrix; null compares as it is."""
        temperature: Annotated[float, Field(ge=1 / MAX_SCALE)] = 0.07
        """What cosines are divided by, at the start where it is learned."""
        learn_temperature: bool = True
        """Whether the temperature is learned; it never falls below 0.01."""
        chunk: PositiveInt | None = None
        """Rows whose states are in memory at once, each chunk encoded twice; null is all rows."""

        @check("streams")
        def _are_two(self) -> str | None:
            one, other = self.streams
            return f"streams must differ, but both are `{one}`" if one == other else None

        def misfit(self, width: Callable[[str], int], *, is_alone: bool) -> str | None:
            if self.chunk is not None and not is_alone:
                return "chunk is for models without another target, which would need all states"
            one, other = map(width, self.streams)
            if one == other or self.size is not None:
                return None
            return f"size must be given, as the streams are {one} and {other} wide"

    def __init__(self, config: Config, sizes: Sizes, name: str = "contrast") -> None:
        super().__init__(name)
        self.config = config
        self.projections = nn.ModuleList()
        if config.size is not None:
            for stream in config.streams:
                self.projections.append(nn.Linear(sizes.width(stream), config.size, bias=False))
        self.log_scale = nn.Parameter(torch.empty(())) if config.learn_temperature else None

    def init_weights(self, std: float) -> None:
        """Start at the temperature of the config; projections are linear layers like others."""
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, -math.log(self.config.temperature))

    def scale(self) -> Tensor | float:
        """What cosines are multiplied with."""
        if self.log_scale is None:
            return 1 / self.config.temperature
        if self.training:
            with torch.no_grad():
                # In place: a limit inside the graph would have no gradient, and so no way back.
                self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return self.log_scale.exp()

    def read(self, name: str, stream: Stream, encode: Callable[[Stream], Hidden]) -> Hidden:
        """Pooled states [B, 1, D] of the stream, made of `chunk` rows after another.

        Nothing else of a chunk is kept. The backward pass encodes it again, from the same state of
        the random generators.
        """
        # Without gradients little is kept anyway, and all processes must encode as often.
        has_chunks = self.config.chunk is not None and torch.is_grad_enabled()
        if self.config.chunk is None or not has_chunks or name not in self.config.streams:
            return encode(stream)
        pooling = self.pooling(name)
        pooled = [
            checkpoint(lambda rows: pool(encode(rows), pooling), part, use_reentrant=False)
            for part in split_rows(stream, self.config.chunk)
        ]
        states = torch.cat(pooled)[:, None]
        return Hidden(states, Layout(states.new_ones(states.shape[:2], dtype=torch.bool)))

    def pooling(self, stream: str) -> PoolingName:
        """What stands for a row of `stream`."""
        is_second = stream == self.config.streams[1]
        return (self.config.other_pooling if is_second else None) or self.config.pooling

    def vector(self, hidden: Hidden, stream: str) -> Tensor:
        """Vectors [B, P] of length 1 of the rows of `stream`, in fp32."""
        is_pooled = hidden.states.shape[1] == 1
        pooled = hidden.states[:, 0] if is_pooled else pool(hidden, self.pooling(stream))
        if self.projections:
            pooled = self.projections[self.config.streams.index(stream)](pooled)
        return F.normalize(pooled.float(), dim=-1)

    def vectors(self, out: ModelOutput) -> list[Tensor]:
        """Vectors [B, P] of length 1 of both streams, in fp32.

        Raises:
            DataError: if the batch lacks one of the streams.
        """
        names = self.config.streams
        return [self.vector(self._find(out.encoded, name), name) for name in names]

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Scores [B, B] of rows of the first stream against those of the second, in fp32."""
        rows, candidates = self.vectors(out)
        return self._scores(rows, candidates)

    def _scores(self, rows: Tensor, candidates: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            return self.scale() * (rows @ candidates.T)

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        vectors = torch.stack(self.vectors(out))
        own = torch.arange(vectors.shape[1], device=vectors.device)
        others = vectors
        if self.training:
            # Processes train in step; what each evaluates is its own affair.
            others = gather_rows(vectors.transpose(0, 1)).transpose(0, 1)
            own = own + first_row(vectors[0])
        there, found = class_loss(self._scores(vectors[0], others[1]), own)
        back, found_back = class_loss(self._scores(vectors[1], others[0]), own)
        loss = Ratio((there.total + back.total) / 2, there.count)
        return TargetOutput({self.label: loss}, {f"{self.label}/accuracy": found + found_back})

    def units(self, batch: Batch) -> Tensor:
        """Number [] of pairs; they need no labels."""
        valid = self._find(batch.streams, self.config.streams[0]).layout.valid
        return torch.full((), len(valid), device=valid.device)

    def _find(self, streams: Mapping[str, Found], name: str) -> Found:
        if name in streams:
            return streams[name]
        raise DataError(
            f"model.target.{self.label}.streams names `{name}`, but the batches have "
            f"{', '.join(streams)}; name two of these, or choose an objective that makes pairs"
        )
