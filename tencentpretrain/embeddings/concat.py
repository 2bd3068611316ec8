"""Several contents of one stream in a row, such as words and then patches (ViLT, Kim et al., 2021).

Shapes: B rows, S positions of one content, T valid positions, E width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, check
from tencentpretrain.embeddings.base import PARTS, Embedding, EmbeddingConfig, EmbeddingPart
from tencentpretrain.errors import DataError
from tencentpretrain.sizes import Patches, Sizes
from tencentpretrain.types import Hidden, Layout, Stream


@PARTS.register("concat")
class ConcatEmbedding(EmbeddingPart):
    """Whole embeddings, each read from the same stream, behind one another."""

    has_content = True

    class Config(ComponentConfig):
        embeddings: dict[str, EmbeddingConfig]
        """Embeddings by name, in the order of their positions."""
        kinds: bool = True
        """Whether a learned vector of its own is added to all positions of each embedding."""

        @check("embeddings")
        def _are_several(self) -> str | None:
            wrong = [
                name
                for name in self.embeddings
                if not name.isidentifier() or hasattr(nn.ModuleDict, name)
            ]
            if wrong:
                return f"embeddings must not be called {', '.join(wrong)}"
            count = len(self.embeddings)
            return None if count > 1 else f"embeddings must be two or more, but there is {count}"

        @property
        def patches(self) -> Patches | None:
            """What images are cut into, where one of the embeddings reads them."""
            grids = (embedding.patches for embedding in self.embeddings.values())
            return next(filter(None, grids), None)

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict()
        for name, inner in config.embeddings.items():
            size = inner.size or sizes.embedding
            inner_sizes = Sizes(sizes.embedding, size, sizes.vocabulary)
            self.embeddings[name] = Embedding(inner, inner_sizes)
        count = len(self.embeddings)
        self.kinds = nn.Parameter(torch.empty(count, sizes.embedding)) if config.kinds else None

    def init_weights(self, std: float) -> None:
        """The embeddings fill themselves."""
        if self.kinds is not None:
            nn.init.normal_(self.kinds, std=std)

    def layout(self, stream: Stream) -> Layout:
        """The layouts of the embeddings behind one another."""
        return join_layouts([embedding.layout(stream) for embedding in self._embeddings()])

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        parts: list[Tensor] = []
        for number, embedding in enumerate(self._embeddings()):
            embedded: Hidden = embedding(stream)
            states = embedded.states
            parts.append(states if self.kinds is None else states + self.kinds[number])
        return torch.cat(parts, 1)

    def _embeddings(self) -> list[Embedding]:
        return [part for part in self.embeddings.values() if isinstance(part, Embedding)]


def join_layouts(layouts: Sequence[Layout]) -> Layout:
    """The layout of rows [B, S_1 + S_2 + ...] that are put together of rows of `layouts`.

    Raises:
        DataError: if a row holds documents that must not know of each other.
    """
    if any(layout.documents is not None for layout in layouts):
        raise DataError(
            "rows hold several documents that are to be kept apart, but something else is put "
            "behind each row; set model.objective.isolate_documents=false"
        )
    rows = len(layouts[0].valid)
    # What has one row for all, as positions of patches may, is meant for each.
    valid = torch.cat([layout.valid.expand(rows, -1) for layout in layouts], 1)
    if all(layout.is_full for layout in layouts):
        return Layout(valid)
    width, start, flat = valid.shape[1], 0, []
    for layout in layouts:
        length = layout.valid.shape[1]
        tokens = layout.tokens
        if tokens is None:
            tokens = torch.arange(rows * length, device=valid.device)
        flat.append(tokens // length * width + tokens % length + start)
        start += length
    # Sorting needs no answer from the device, as finding the valid positions would.
    return Layout(valid, torch.cat(flat).sort().values)
