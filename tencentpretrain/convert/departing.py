"""What is known of a model of ours before it becomes one of `transformers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tencentpretrain.model import ModelConfig
from tencentpretrain.tokenizers.base import Role
from tencentpretrain.train.tensor_file import LazyTensors


@dataclass(frozen=True)
class Departing:
    """A model of ours that is to become one of a family.

    Args:
        model: Its config.
        tensors: Its weights.
        aside: Their tensors that were kept when it was converted from theirs.
        specials: Ids of special tokens.
        labels: Names of the classes of its classifier; None where they have none.
        origin: Content of the config.json that it was converted from, if it was.
        start: Id of the token that its decoder starts from; None where nothing tells it.
    """

    model: ModelConfig
    tensors: LazyTensors
    aside: LazyTensors = field(default_factory=lambda: LazyTensors.of({}))
    specials: Mapping[Role, int | None] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    start: int | None = None
