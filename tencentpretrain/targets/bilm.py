"""Two language models, one in each direction (Peters et al., 2018, ELMo, section 3.1)."""

from __future__ import annotations

from torch import Tensor

from tencentpretrain.config import ConfigError
from tencentpretrain.layers.padding import take_rows
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, TargetConfig
from tencentpretrain.targets.heads import VocabularyHead, VocabularyTarget
from tencentpretrain.types import Batch, ModelOutput


@TARGETS.register("bilm")
class BilmTarget(VocabularyTarget):
    """Predicts the next token from the first half of a state and the previous one from the second.

    One output layer serves both. Labels lie on the grid [B, S, 2] of the halves, flat: 2 p is what
    follows position p, 2 p + 1 what precedes it. The encoder must keep its directions apart.
    """

    class Config(TargetConfig):
        bias: bool = False
        """Whether the output layer has a bias."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "bilm") -> None:
        super().__init__(name)
        if sizes.hidden % 2:
            message = f"must be even for the two halves of target.{name}, but is {sizes.hidden}"
            raise ConfigError.at("model.hidden", message)
        self.output = VocabularyHead(sizes.hidden // 2, sizes.vocabulary, has_bias=config.bias)

    def prepare(self, states: Tensor) -> Tensor:
        return states

    def supervised(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Halves [K, D / 2] of states at the supervised places, else all [B * S * 2, D / 2]."""
        halves: Tensor = out.hidden.states.unflatten(-1, (2, -1)).flatten(0, 2)
        labels = batch.labels.get(self.label)
        if labels is None or labels.index is None:
            return halves
        return take_rows(halves, labels.index)
