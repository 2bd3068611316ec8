"""One vector for each row of a stream: states of a layer, pooled over what is no padding."""

from __future__ import annotations

from torch import Tensor

from tencentpretrain.config import ConfigError
from tencentpretrain.errors import CheckpointError
from tencentpretrain.targets.classify import PoolingName, pool
from tencentpretrain.targets.contrast import ContrastTarget
from tencentpretrain.tools.saved_model import SavedModel
from tencentpretrain.types import NOTHING, Hidden, Stream, Want


class PooledStates:
    """Reads a stream in the tower of its name, or in the model's own parts.

    Args:
        saved: Whose states they are.
        stream: Name of the stream.
        pooling: What stands for a row.
        layer: 0 is the embedding; negative numbers count from the last layer, -1.

    Raises:
        ConfigError: if there is no such layer.
    """

    def __init__(
        self, saved: SavedModel, stream: str, pooling: PoolingName, layer: int = -1
    ) -> None:
        self._model, self._stream, self._pooling = saved.model, stream, pooling
        tower = saved.config.towers.get(stream)
        config = (saved.config if tower is None else tower).encoder
        stacks = dict(zip([None, *saved.config.towers], saved.model.stacks(), strict=False))
        stack = stacks[None if tower is None else stream]
        layers: int = getattr(config, "layers", len(stack.blocks()))
        number = layers + 1 + layer if layer < 0 else layer
        if not 0 <= number <= layers:
            message = f"must be between {-layers - 1} and {layers}, but is {layer}"
            raise ConfigError.at("layer", message)
        # The states that the encoder returns in any case are those of the last layer.
        self._want = NOTHING if number == layers else Want((number,))

    def __call__(self, stream: Stream) -> Tensor:
        """Vectors [B, D]."""
        return pool(self.hidden(stream), self._pooling)

    def hidden(self, stream: Stream) -> Hidden:
        """States [B, S, D] of the layer."""
        hidden = self._model.read_stream(self._stream, stream, self._want)
        return hidden if self._want is NOTHING else Hidden(hidden.layers[0], hidden.layout)


class ComparedVectors:
    """What a model that was trained to match two streams compares: vectors of length 1.

    Args:
        saved: The model.
        stream: Name of the stream.

    Raises:
        CheckpointError: if the model compares no such stream.
    """

    def __init__(self, saved: SavedModel, stream: str) -> None:
        name, target = saved.target(ContrastTarget, "match two streams")
        if stream not in target.config.streams:
            raise CheckpointError(
                f"the target `{name}` of `{saved.checkpoint.path}` compares "
                f"{' and '.join(target.config.streams)}, not `{stream}`; leave compared out"
            )
        self._model, self._target, self._stream = saved.model, target, stream

    def __call__(self, stream: Stream) -> Tensor:
        """Vectors [B, P]."""
        hidden = self._model.read_stream(self._stream, stream)
        return self._target.vector(hidden, self._stream)
