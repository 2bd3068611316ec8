"""Masked language modelling (Devlin et al., 2019, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from tencentpretrain.config import PositiveFloat
from tencentpretrain.layers.activation import ActivationName, build_activation
from tencentpretrain.layers.norm import NormName, build_norm
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, TargetConfig
from tencentpretrain.targets.heads import VocabularyHead, VocabularyTarget


@TARGETS.register("mlm")
class MlmTarget(VocabularyTarget):
    """Predicts the ids of masked tokens: linear, activation, norm, output layer with bias.

    With `dense` off it predicts the codes of masked patches (Bao et al., 2022, BEiT, section 2.3).
    """

    class Config(TargetConfig):
        activation: ActivationName = "gelu"
        """Activation after the linear layer."""
        norm: NormName = "layer"
        """Norm before the output layer."""
        norm_eps: PositiveFloat = 1e-12
        """Added to the variance in the norm."""
        dense: bool = True
        """Whether linear layer, activation and norm precede the output layer (BEiT: none does)."""
        bias: bool = True
        """Whether the linear layer has a bias (ModernBERT's has none); the output layer has one."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "mlm") -> None:
        super().__init__(name)
        size = sizes.embedding if config.dense else sizes.hidden
        if config.dense:
            self.dense = nn.Linear(sizes.hidden, size, bias=config.bias)
            self.activation = build_activation(config.activation)
            self.norm = build_norm(config.norm, size, config.norm_eps)
        self.has_dense = config.dense
        self.output = VocabularyHead(size, sizes.vocabulary, has_bias=True)

    def prepare(self, states: Tensor) -> Tensor:
        if not self.has_dense:
            return states
        normed: Tensor = self.norm(self.activation(self.dense(states)))
        return normed
