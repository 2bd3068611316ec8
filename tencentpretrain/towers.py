"""What reads one stream: an embedding and an encoder, the model's own or a tower's."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import nn

from tencentpretrain.config import Choice, ComponentConfig, Config, PositiveInt, SerializeAsAny
from tencentpretrain.embeddings.base import Embedding, EmbeddingConfig
from tencentpretrain.encoders.base import ENCODERS, Encoder, EncoderConfig
from tencentpretrain.layers.cache import Cache
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import NOTHING, Hidden, Stream, Want


class TowerConfig(Config):
    """Embedding and encoder of a stream that the model's own do not read."""

    hidden: PositiveInt | None = None
    """Width of the tower; null is that of the model."""
    embedding: EmbeddingConfig
    """Embedding of the stream."""
    encoder: Annotated[SerializeAsAny[ComponentConfig], Choice(ENCODERS, "transformer")]
    """Encoder of the stream."""

    def misfit(self, hidden: int) -> str | None:
        """What is wrong with this tower in a model of width `hidden`."""
        encoder = self.encoder
        return encoder.misfit(self.hidden or hidden) if isinstance(encoder, EncoderConfig) else None

    def sizes(self, sizes: Sizes) -> Sizes:
        """Sizes of the tower in a model whose own are `sizes`."""
        hidden = self.hidden or sizes.hidden
        return Sizes(hidden, self.embedding.size or hidden, sizes.vocabulary)


class Tower(nn.Module):
    """Embedding and encoder of one stream."""

    def __init__(self, config: TowerConfig, sizes: Sizes) -> None:
        super().__init__()
        self.embedding, self.encoder = build_side(config.embedding, config.encoder, sizes)

    def forward(self, stream: Stream, want: Want = NOTHING) -> Hidden:
        """Embed and encode `stream`."""
        return read_side(self.embedding, self.encoder, stream, want)


def build_side(
    embedding: EmbeddingConfig, encoder: ComponentConfig, sizes: Sizes
) -> tuple[Embedding, Encoder]:
    """An embedding as wide as its encoder takes it, and the encoder."""
    is_direct = ENCODERS.get(encoder.name).reads_embedding
    width = sizes.embedding if is_direct else sizes.hidden
    parts = Embedding(embedding, replace(sizes, hidden=width))
    built: Encoder = ENCODERS.build(encoder, replace(sizes, patches=embedding.patches))
    return parts, built


def read_side(
    embedding: Embedding,
    encoder: Encoder,
    stream: Stream,
    want: Want = NOTHING,
    cache: Cache | None = None,
) -> Hidden:
    """Embed and encode one stream, or what follows on that which `cache` has read."""
    embedded = embedding(stream)
    caches = () if cache is None else (cache,)
    hidden: Hidden = encoder(embedded.states, embedded.layout, want, *caches)
    return hidden
