"""Parts that embed token ids, their positions and their segments (Devlin et al., 2019)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, NonNegativeInt, PositiveInt
from tencentpretrain.embeddings.base import PARTS, EmbeddingPart
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import Layout, Stream


class Table(EmbeddingPart):
    """A learned table [rows, E]."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)


@PARTS.register("word")
class WordEmbedding(Table):
    """Embeds the stream's "ids" [B, S]."""

    has_content = True

    class Config(ComponentConfig):
        scale: bool = False
        """Whether to multiply by the root of the width, so that positions do not drown words."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__(sizes.vocabulary, sizes.embedding)
        self.factor = math.sqrt(sizes.embedding) if config.scale else 1.0

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        words = self.look_up(stream.inputs["ids"])
        return words if self.factor == 1.0 else words * self.factor

    def look_up(self, ids: Tensor) -> Tensor:
        """Rows [B, S, E] of the table."""
        return F.embedding(ids, self.weight)


@PARTS.register("position")
class PositionEmbedding(Table):
    """Learned absolute positions: the stream's "positions" [B, S], or 0 to S-1 in every row."""

    class Config(ComponentConfig):
        length: PositiveInt = 512
        """Number of positions in the table, the longest row that the model can read."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__(config.length, sizes.embedding)

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        positions = stream.inputs.get("positions")
        if positions is None:
            length = layout.valid.shape[1]
            if length > len(self.weight):
                raise ValueError(
                    f"rows must have at most {len(self.weight)} positions "
                    f"(embedding.parts.position.length), but have {length}"
                )
            return self.weight[:length]
        return F.embedding(positions, self.weight)


@PARTS.register("segment")
class SegmentEmbedding(Table):
    """Embeds which text of a pair a token belongs to: the stream's "segments" [B, S], else 0."""

    class Config(ComponentConfig):
        types: PositiveInt = 2
        """Number of different segments."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__(config.types, sizes.embedding)

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        segments = stream.inputs.get("segments")
        return self.weight[0] if segments is None else F.embedding(segments, self.weight)


@PARTS.register("sinusoidal")
class SinusoidalEmbedding(EmbeddingPart):
    """Fixed waves of each position (Vaswani et al., 2017, section 3.5); nothing is learned."""

    class Config(ComponentConfig):
        layout: Literal["interleaved", "halves"] = "interleaved"
        """Sines and cosines in turn (as published), or all sines before all cosines (PEGASUS)."""
        offset: NonNegativeInt = 0
        """Added to each position."""
        inclusive: bool = False
        """Whether the longest wave is exactly 10,000 times the shortest (tensor2tensor, S2T)."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.size = sizes.embedding

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        config, half = self.config, self.size // 2
        positions = stream.inputs.get("positions")
        if positions is None:
            positions = torch.arange(layout.valid.shape[1], device=layout.valid.device)
        steps = half - 1 if config.inclusive else self.size / 2
        waves = torch.arange(half, dtype=torch.float32, device=positions.device)
        frequencies = torch.exp(waves * (-math.log(10000.0) / steps))
        angles = (positions + config.offset)[..., None] * frequencies
        pair = (angles.sin(), angles.cos())
        if config.layout == "halves":
            return torch.cat(pair, -1)
        return torch.stack(pair, -1).flatten(-2)
