"""One vector for each text: states of a layer, pooled over the positions that are no padding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.targets.classify import PoolingName
from tencentpretrain.targets.contrast import ContrastTarget
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tools.pooled import ComparedVectors, PooledStates
from tencentpretrain.tools.saved_model import SavedModel
from tencentpretrain.tools.texts import Line, TextFormat, in_parts, run_sorted
from tencentpretrain.tools.vector_file import Vectors
from tencentpretrain.types import SRC, Batch, Hidden, Stream

log = logging.getLogger("tencentpretrain")


class TextVectors:
    """Computes pooled states of texts.

    Args:
        saved: a model that reads text.
        machine: how it is run.
        pooling: what stands for a text.
        layer: 0 is the embedding; negative numbers count from the last layer, -1.
        length: of a row at most, in tokens; None is that of training.
        is_compared: whether vectors are those that the model was trained to compare instead.

    Raises:
        ConfigError: if the model has no such layer, or cannot read rows of `length`.
        CheckpointError: if it was not trained to compare anything.
    """

    def __init__(
        self,
        saved: SavedModel,
        machine: Machine,
        pooling: PoolingName,
        layer: int = -1,
        length: int | None = None,
        is_compared: bool = False,
    ) -> None:
        self._machine = machine
        self._format = TextFormat(saved, saved.length(length))
        stream = text_stream_name(saved)
        self._read: Callable[[Stream], Tensor]
        self._states = PooledStates(saved, stream, pooling, layer)
        self._read = ComparedVectors(saved, stream) if is_compared else self._states

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
        pooled = self._read(batch.to(self._machine.device).streams[SRC])
        return list(pooled.float().cpu().numpy())

    def hidden(self, batch: Batch) -> Hidden:
        """States [B, S, D] of the layer."""
        return self._states.hidden(batch.streams[SRC])


def text_stream_name(saved: SavedModel) -> str:
    """The stream in which a model reads texts: the first of two that it compares, if it does."""
    targets = (saved.model.target[name] for name in saved.config.target)
    compared = (t.config.streams[0] for t in targets if isinstance(t, ContrastTarget))
    return next(compared, SRC)
