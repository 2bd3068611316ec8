"""The embedding: a sum of parts, normalised and dropped out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
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
from tencentpretrain.sizes import Patches, Sizes
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

    def numbered(self, stream: Stream) -> Stream:
        """The stream as all parts read it; a part with content may number its positions."""
        return stream


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
    norm_again: bool = False
    """Whether a second such norm follows, as in TencentPretrain's models of two towers."""
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
        taken = sorted({"norm", "second_norm", "dropout", "projection"} & self.parts.keys())
        return f"parts must not be called {', '.join(taken)}" if taken else None

    @property
    def patches(self) -> Patches | None:
        """What images are cut into, where a part reads them."""
        found = (getattr(part, "patches", None) for part in self.parts.values())
        return next((patches for patches in found if isinstance(patches, Patches)), None)

    @check("parts")
    def _patches_are_there(self) -> str | None:
        users = [n for n, part in self.parts.items() if getattr(part, "needs_patches", False)]
        if not users or self.patches is not None:
            return None
        return f"parts.{users[0]} needs a part `patch` beside it, but there is none"

    @check("parts")
    def _positions_fit(self) -> str | None:
        patches, position = self.patches, self.parts.get("position")
        length = getattr(position, "length", None)
        if patches is None or length is None or length >= patches.positions:
            return None
        return (
            f"parts.position.length must be at least {patches.positions}, the positions of an "
            f"image, but is {length}; or take `patch_position`, which has as many as there are"
        )


class Embedding(nn.Module):
    """Sums the outputs of its parts; each part is a submodule under its own name."""

    def __init__(self, config: EmbeddingConfig, sizes: Sizes) -> None:
        super().__init__()
        self.names = tuple(config.parts)
        sizes = replace(sizes, patches=config.patches)
        for name, part in config.parts.items():
            self.add_module(name, PARTS.build(part, sizes))
        self.norm = build_norm(config.norm, sizes.embedding, config.norm_eps)
        second = config.norm if config.norm_again else "none"
        self.second_norm = build_norm(second, sizes.embedding, config.norm_eps)
        self.dropout = Dropout(config.dropout)
        is_factorised = sizes.embedding != sizes.hidden
        self.projection = (
            nn.Linear(sizes.embedding, sizes.hidden) if is_factorised else nn.Identity()
        )

    def parts(self) -> list[EmbeddingPart]:
        modules = (self.get_submodule(name) for name in self.names)
        return [module for module in modules if isinstance(module, EmbeddingPart)]

    def content(self) -> EmbeddingPart:
        """The part that decides the layout."""
        return next(part for part in self.parts() if part.has_content)

    def layout(self, stream: Stream) -> Layout:
        """Layout of what `forward` makes of `stream`."""
        return self.content().layout(stream)

    def forward(self, stream: Stream) -> Hidden:
        """Embed one stream into states [B, S, D]."""
        parts, content = self.parts(), self.content()
        stream, layout = content.numbered(stream), content.layout(stream)
        total = content(stream, layout)
        for part in parts:
            if part is not content:
                total = total + part(stream, layout)
        return Hidden(self.projection(self.dropout(self.second_norm(self.norm(total)))), layout)
