"""Parts that embed token ids, their positions and their segments (Devlin et al., 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, PositiveInt
from tencentpretrain.embeddings.base import PARTS, EmbeddingPart
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import Layout, Stream


class _Table(EmbeddingPart):
    """A learned table [rows, E]."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)


@PARTS.register("word")
class WordEmbedding(_Table):
    """Embeds the stream's "ids" [B, S]."""

    has_content = True

    class Config(ComponentConfig):
        pass

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__(sizes.vocabulary, sizes.embedding)

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        return F.embedding(stream.inputs["ids"], self.weight)


@PARTS.register("position")
class PositionEmbedding(_Table):
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
class SegmentEmbedding(_Table):
    """Embeds which text of a pair a token belongs to: the stream's "segments" [B, S], else 0."""

    class Config(ComponentConfig):
        types: PositiveInt = 2
        """Number of different segments."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__(config.types, sizes.embedding)

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        segments = stream.inputs.get("segments")
        return self.weight[0] if segments is None else F.embedding(segments, self.weight)
