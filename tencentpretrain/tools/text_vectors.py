"""One vector for each text: states of a layer, pooled over the positions that are no padding."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.config import ConfigError
from tencentpretrain.targets.classify import PoolingName, pool
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tools.saved_model import SavedModel
from tencentpretrain.tools.texts import Line, TextFormat, in_parts, run_sorted
from tencentpretrain.tools.vector_file import Vectors
from tencentpretrain.types import NOTHING, Batch, Hidden, Want

log = logging.getLogger("tencentpretrain")


class TextVectors:
    """Computes pooled states of texts.

    Args:
        saved: a model that reads text.
        machine: how it is run.
        pooling: what stands for a text.
        layer: 0 is the embedding; negative numbers count from the last layer, -1.
        length: of a row at most, in tokens; None is that of training.

    Raises:
        ConfigError: if the model has no such layer, or cannot read rows of `length`.
    """

    def __init__(
        self,
        saved: SavedModel,
        machine: Machine,
        pooling: PoolingName,
        layer: int = -1,
        length: int | None = None,
    ) -> None:
        self._model, self._machine, self._pooling = saved.model, machine, pooling
        self._format = TextFormat(saved, saved.length(length))
        layers: int = getattr(saved.config.encoder, "layers", len(saved.model.encoder.blocks()))
        number = layers + 1 + layer if layer < 0 else layer
        if not 0 <= number <= layers:
            message = f"must be between {-layers - 1} and {layers}, but is {layer}"
            raise ConfigError.at("layer", message)
        # The states that the encoder returns in any case are those of the last layer.
        self._want = NOTHING if number == layers else Want((number,))

    def vectors(self, lines: Iterable[Line]) -> Iterator[Vectors]:
        """Vectors [n, D] of some of the lines at a time, in their order."""
        count = cut = 0
        for part in in_parts(iter(lines)):
            encoded = self._format.encode([line.text for line in part])
            rows = [self._format.row(ids) for ids in encoded]
            count += len(rows)
            cut += sum(len(ids) > self._format.room for ids in encoded)
            yield np.stack(run_sorted(rows, self._machine, partial(self._pooled, rows)))
        if cut:
            log.warning(
                f"{cut:,} of {count:,} lines are longer than length={self._format.length} tokens "
                "and were cut"
            )

    def _pooled(self, rows: list[NDArray[np.int64]], numbers: list[int]) -> list[Vectors]:
        """Vectors [D] of those of `rows`."""
        batch, _ = self._format.batch([rows[number] for number in numbers])
        pooled = pool(self.hidden(batch.to(self._machine.device)), self._pooling)
        return list(pooled.float().cpu().numpy())

    def hidden(self, batch: Batch) -> Hidden:
        """States [B, S, D] of the layer."""
        hidden = self._model.read(batch.streams["src"], self._want)
        if self._want is NOTHING:
            return hidden
        return Hidden(hidden.layers[0], hidden.layout)
