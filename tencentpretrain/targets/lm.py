"""Next-token prediction (Radford et al., 2019)."""

from __future__ import annotations

from torch import Tensor

from tencentpretrain.config import Probability
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, TargetConfig
from tencentpretrain.targets.heads import VocabularyHead, VocabularyTarget


@TARGETS.register("lm")
class LmTarget(VocabularyTarget):
    """Predicts the following token at each position with one output layer."""

    class Config(TargetConfig):
        bias: bool = False
        """Whether the output layer has a bias."""
        label_smoothing: Probability = 0.0
        """Part of the probability that is spread over the whole vocabulary (Szegedy et al., 2016,
        section 7)."""
        scale_states: bool = False
        """Whether states are divided by the root of their width before a tied output layer (T5)."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "lm") -> None:
        super().__init__(name)
        self.smoothing = config.label_smoothing
        self.factor = sizes.hidden**-0.5 if config.scale_states else 1.0
        self.output = VocabularyHead(sizes.hidden, sizes.vocabulary, has_bias=config.bias)

    def prepare(self, states: Tensor) -> Tensor:
        return states if self.factor == 1.0 else states * self.factor
