"""Matching texts among those of a batch (CLIP, Radford et al., 2021; SimCSE, Gao et al., 2021).

Shapes: B rows, D width, P width of the compared vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tencentpretrain.config import PositiveInt, check
from tencentpretrain.errors import DataError
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Target, TargetConfig
from tencentpretrain.targets.classify import PoolingName, pool
from tencentpretrain.targets.cross_entropy import class_loss
from tencentpretrain.types import Batch, Hidden, ModelOutput, Ratio, Stream, TargetOutput

Found = TypeVar("Found", Hidden, Stream)
MAX_SCALE: Final = 100.0
"""Greatest factor of the cosines, as in CLIP: beyond it training becomes unstable."""


@TARGETS.register("contrast")
class ContrastTarget(Target):
    """Finds, for each row of one stream, the row of the other one that belongs to it, and back.

    Both are compared by the cosine of pooled states, divided by a temperature. The other rows of
    the micro-batch are what they are told from, so its size is part of the task.
    """

    class Config(TargetConfig):
        streams: tuple[str, str] = ("src", "pair")
        """The two streams of the batch whose rows belong together."""
        pooling: PoolingName = "mean"
        """What stands for a row: its first or last position, or the mean or maximum of all."""
        size: PositiveInt | None = None
        """Width that each stream is projected to by its own matrix; null compares as it is."""
        temperature: Annotated[float, Field(ge=1 / MAX_SCALE)] = 0.07
        """What cosines are divided by, at the start where it is learned."""
        learn_temperature: bool = True
        """Whether the temperature is learned; it never falls below 0.01."""

        @check("streams")
        def _are_two(self) -> str | None:
            one, other = self.streams
            return f"streams must differ, but both are `{one}`" if one == other else None

    def __init__(self, config: Config, sizes: Sizes, name: str = "contrast") -> None:
        super().__init__(name)
        self.config = config
        self.projections = nn.ModuleList()
        if config.size is not None:
            for _ in config.streams:
                self.projections.append(nn.Linear(sizes.hidden, config.size, bias=False))
        self.log_scale = nn.Parameter(torch.empty(())) if config.learn_temperature else None

    def init_weights(self, std: float) -> None:
        """Start at the temperature of the config; projections are linear layers like others."""
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, -math.log(self.config.temperature))

    def scale(self) -> Tensor | float:
        """What cosines are multiplied with."""
        if self.log_scale is None:
            return 1 / self.config.temperature
        with torch.no_grad():
            # In place: a limit inside the graph would have no gradient, and so no way back.
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return self.log_scale.exp()

    def vectors(self, out: ModelOutput) -> list[Tensor]:
        """Vectors [B, P] of length 1 of both streams, in fp32.

        Raises:
            DataError: if the batch lacks one of the streams.
        """
        streams = [self._find(out.encoded, stream) for stream in self.config.streams]
        vectors = [pool(hidden, self.config.pooling) for hidden in streams]
        if self.projections:
            vectors = [layer(x) for layer, x in zip(self.projections, vectors, strict=True)]
        return [F.normalize(vector.float(), dim=-1) for vector in vectors]

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Scores [B, B] of rows of the first stream against all candidates of the second, in fp32.

        The candidates are the rows of this batch; this is where those of other ranks would join.
        """
        rows, candidates = self.vectors(out)
        with torch.autocast(rows.device.type, enabled=False):
            return self.scale() * (rows @ candidates.T)

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        scores = self.logits(out, batch)
        own = torch.arange(len(scores), device=scores.device)
        (there, found), (back, found_back) = class_loss(scores, own), class_loss(scores.T, own)
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
