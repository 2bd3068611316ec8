"""The embedding: a sum of parts, normalised and dropped out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

from torch import Tensor, nn

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    PositiveFloat,
    PositiveInt,
    Probability,
    SerializeAsAny,
    check,
)
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.layers.norm import NormName, build_norm
from tencentpretrain.registry import Registry
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import Hidden, Layout, Stream


class EmbeddingPart(nn.Module, ABC):
    """One summand of an embedding. A part with content (words, patches) decides the layout."""

    has_content: bool = False

    @abstractmethod
    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        """Embed what the part reads of `stream` into [B, S, E], S as in `layout`."""

    def layout(self, stream: Stream) -> Layout:
        """Layout after embedding; only a part with content may change the length."""
        return stream.layout


PARTS: Registry[EmbeddingPart] = Registry("embedding part", "tencentpretrain.embeddings")


class EmbeddingConfig(Config):
    """What an embedding is made of."""

    parts: dict[str, Annotated[SerializeAsAny[ComponentConfig], Choice(PARTS)]]
    """Parts by name; exactly one of them has content."""
    size: PositiveInt | None = None
    """Width of the parts; a linear layer follows where the model has another (ALBERT)."""
    norm: NormName = "layer"
    """Norm after the sum: layer, rms or none."""
    norm_eps: PositiveFloat = 1e-12
    """Added to the variance in the norm."""
    dropout: Probability = 0.1
    """Dropout rate after the norm."""

    @check("parts")
    def _one_content(self) -> str | None:
        contents = [n for n, part in self.parts.items() if PARTS.get(part.name).has_content]
        if len(contents) == 1:
            return None
        return f"parts must have exactly one with content such as `word`, but has {contents}"

    @check("parts")
    def _names_are_free(self) -> str | None:
        taken = sorted({"norm", "dropout", "projection"} & self.parts.keys())
        return f"parts must not be called {', '.join(taken)}" if taken else None


class Embedding(nn.Module):
    """Sums the outputs of its parts; each part is a submodule under its own name."""

    def __init__(self, config: EmbeddingConfig, sizes: Sizes) -> None:
        super().__init__()
        self.names = tuple(config.parts)
        for name, part in config.parts.items():
            self.add_module(name, PARTS.build(part, sizes))
        self.norm = build_norm(config.norm, sizes.embedding, config.norm_eps)
        self.dropout = Dropout(config.dropout)
        is_factorised = sizes.embedding != sizes.hidden
        self.projection = (
            nn.Linear(sizes.embedding, sizes.hidden) if is_factorised else nn.Identity()
        )

    def parts(self) -> list[EmbeddingPart]:
        modules = (self.get_submodule(name) for name in self.names)
        return [module for module in modules if isinstance(module, EmbeddingPart)]

    def forward(self, stream: Stream) -> Hidden:
        """Embed one stream into states [B, S, D]."""
        parts = self.parts()
        content = next(part for part in parts if part.has_content)
        layout = content.layout(stream)
        total = content(stream, layout)
        for part in parts:
            if part is not content:
                total = total + part(stream, layout)
        return Hidden(self.projection(self.dropout(self.norm(total))), layout)
