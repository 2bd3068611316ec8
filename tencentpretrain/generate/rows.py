"""Rows that grow by a token at a time, each position read only once where the model allows it.

Shapes: B rows, S positions of the prompts, V vocabulary, T tokens that may be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tencentpretrain.data.rows import Grid
from tencentpretrain.embeddings.base import Embedding
from tencentpretrain.embeddings.text import PositionEmbedding
from tencentpretrain.layers.cache import Cache
from tencentpretrain.model import Model
from tencentpretrain.targets.base import Target
from tencentpretrain.types import NOTHING, Batch, Hidden, Layout, ModelOutput, Stream, map_tensors

Ids = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How rows are read.

    Args:
        vocabulary: Entries that may be written; None is all rows of the output layer.
        first: The first of those that may be written.
        first_position: Of what is written, in tables of positions; None is behind the prompt.
        has_prefix: Whether a model with the mask `prefix` sees a prompt as a whole.
        segment: Segment of what is written; prompts have 0.
        is_cached: Whether what was computed of a position is kept, if the model can do so.
    """

    vocabulary: int | None = None
    first: int = 0
    first_position: int | None = None
    has_prefix: bool = True
    segment: int = 0
    is_cached: bool = True


def table_length(embedding: Embedding) -> int | None:
    """Positions that `embedding` has a table for; None where it has none."""
    tables = (len(p.weight) for p in embedding.parts() if isinstance(p, PositionEmbedding))
    return min(tables, default=None)


class GrowingRows:
    """A batch of rows that an encoder reads while they grow.

    All grow together, so shorter prompts are padded on the left.

    Args:
        model: Without dropout, on its device.
        target: Its output layer.
        prompts: Ids that the rows begin with, at least one each.
        steps: Greatest number of tokens T that are appended.
        options: How they are read.
    """

    def __init__(
        self,
        model: Model,
        target: Target,
        prompts: Sequence[Ids],
        steps: int,
        options: RowOptions,
    ) -> None:
        self._options = options
        self._model = model
        self._target = target
        embedding, self._part = self._side(model)
        self._device = next(model.parameters()).device
        lengths = torch.tensor([len(ids) for ids in prompts])
        width = int(lengths.max())
        self._valid = torch.arange(width) >= width - lengths[:, None]
        self._ids = torch.zeros(self._valid.shape, dtype=torch.int64)
        self._ids[self._valid] = torch.tensor([token for ids in prompts for token in ids])
        self._ids = self._ids.to(self._device)
        # Rows that have ended may go on beyond the last position; nobody looks at what they write.
        positions = torch.arange(width + steps) - (width - lengths[:, None])
        if options.first_position is not None:
            positions[:, width:] = options.first_position + torch.arange(steps)
        last = (table_length(embedding) or width + steps) - 1
        self._positions = positions.clamp(min=0, max=last).to(self._device)
        self._prompt = self._length = width
        self._cache: Cache | None = None
        if options.is_cached:
            self._cache = self._part.make_cache(width + steps)
        self._one = self._ones(len(prompts))

    def _side(self, model: Model) -> tuple[Embedding, Any]:
        """Embedding and stack that the rows go through."""
        return model.embedding, model.encoder

    def _read(self, stream: Stream) -> Hidden:
        return self._model.read(stream, NOTHING, self._cache)

    def start(self) -> Tensor:
        """Scores [B, V] of what follows the prompts."""
        return self._read_all()

    def append(self, tokens: Tensor) -> Tensor:
        """Scores [B, V] of what follows on `tokens` [B]."""
        self._length += 1
        if self._cache is None:
            self._ids = torch.cat([self._ids, tokens[:, None]], 1)
            self._valid = torch.nn.functional.pad(self._valid, (0, 1), value=True)
            return self._read_all()
        return self._scores(self._read(self._stream(tokens[:, None], self._one)))

    def _read_all(self) -> Tensor:
        layout = map_tensors(Layout.of(self._valid), lambda tensor: tensor.to(self._device))
        if self._options.has_prefix:
            layout.prefix = torch.full((len(self._ids),), self._prompt, device=self._device)
        return self._scores(self._read(self._stream(self._ids, layout)))

    def _stream(self, ids: Tensor, layout: Layout) -> Stream:
        """The newest positions, whose `ids` are [B, n]."""
        first = self._length - ids.shape[1]
        inputs = {"ids": ids, "positions": self._positions[:, first : self._length]}
        if self._options.segment:
            is_new = torch.arange(first, self._length, device=self._device) >= self._prompt
            inputs["segments"] = (is_new * self._options.segment).expand_as(ids)
        return Stream(inputs, layout)

    def _scores(self, hidden: Hidden) -> Tensor:
        """Those of the last position only."""
        last = ModelOutput(Hidden(hidden.states[:, -1:], self._one), {})
        scores = self._target.logits(last, Batch({}))[:, : self._options.vocabulary]
        if self._options.first:
            scores[:, : self._options.first] = -torch.inf
        return scores

    def _ones(self, rows: int) -> Layout:
        return Layout(torch.ones(rows, 1, dtype=torch.bool, device=self._device))

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these of the rows, in this order and as often as they are named."""
        chosen = torch.tensor(rows)
        self._valid = self._valid[chosen]
        self._one = self._ones(len(rows))
        chosen = chosen.to(self._device)
        self._positions = self._positions.index_select(0, chosen)
        self._exchange(chosen)

    def reorder(self, rows: Tensor) -> None:
        """Go on with as many `rows` [B] as before, each in the place of one of the same prompt."""
        self._exchange(rows)

    def _exchange(self, rows: Tensor) -> None:
        if self._cache is None:
            self._ids = self._ids.index_select(0, rows)
        else:
            self._cache.select(rows)


def read_sources(model: Model, sources: Sequence[Ids]) -> Hidden:
    """What the encoder of `model` says of rows of ids, at least one each."""
    rows = [np.array(ids) for ids in sources]
    grid = Grid(rows, 1, max(map(len, rows)))
    stream = Stream({"ids": grid.fill(rows, 0)}, grid.layout())
    device = next(model.parameters()).device
    return model.read(map_tensors(stream, lambda tensor: tensor.to(device)))


class TargetRows(GrowingRows):
    """A batch of rows that a decoder reads while they grow, and what an encoder said of others.

    Args:
        model: Without dropout, on its device.
        target: Its output layer.
        memory: What the encoder said of the other rows.
        start: Ids that the rows begin with.
        steps: Greatest number of tokens T that are appended.
        options: How they are read.
    """

    def __init__(
        self,
        model: Model,
        target: Target,
        memory: Hidden,
        start: Ids,
        steps: int,
        options: RowOptions,
    ) -> None:
        super().__init__(model, target, [start] * len(memory.states), steps, options)
        self._memory = memory
        # On the host, where the valid positions of chosen rows are found.
        self._source_valid = memory.layout.valid.cpu()

    def _side(self, model: Model) -> tuple[Embedding, Any]:
        assert model.target_embedding is not None
        return model.target_embedding, model.decoder

    def _read(self, stream: Stream) -> Hidden:
        return self._model.decode(stream, self._memory, NOTHING, self._cache)

    def select(self, rows: Sequence[int]) -> None:
        self._source_valid = self._source_valid[torch.tensor(rows)]
        source = Layout.of(self._source_valid)
        layout = map_tensors(source, lambda tensor: tensor.to(self._device))
        chosen = torch.tensor(rows, device=self._device)
        self._memory = Hidden(self._memory.states.index_select(0, chosen), layout)
        super().select(rows)
