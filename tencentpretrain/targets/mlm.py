"""Masked language modelling (Devlin et al., 2019, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from tencentpretrain.config import PositiveFloat
from tencentpretrain.layers.activation import ActivationName, build_activation
from tencentpretrain.layers.norm import NormName, build_norm
from tencentpretrain.layers.padding import take_rows
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, TargetConfig
from tencentpretrain.targets.heads import VocabularyHead, VocabularyTarget
from tencentpretrain.types import Batch, ModelOutput


@TARGETS.register("mlm")
class MlmTarget(VocabularyTarget):
    """Predicts the ids of masked tokens: linear, activation, norm, output layer with bias."""

    class Config(TargetConfig):
        activation: ActivationName = "gelu"
        """Activation after the linear layer."""
        norm: NormName = "layer"
        """Norm before the output layer."""
        norm_eps: PositiveFloat = 1e-12
        """Added to the variance in the norm."""
        bias: bool = True
        """Whether the linear layer has a bias (ModernBERT's has none); the output layer has one."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "mlm") -> None:
        super().__init__(name)
        self.dense = nn.Linear(sizes.hidden, sizes.embedding, bias=config.bias)
        self.activation = build_activation(config.activation)
        self.norm = build_norm(config.norm, sizes.embedding, config.norm_eps)
        self.output = VocabularyHead(sizes.embedding, sizes.vocabulary, has_bias=True)

    def transform(self, out: ModelOutput, batch: Batch) -> Tensor:
        states = out.hidden.states.flatten(0, 1)
        labels = batch.labels.get(self.label)
        if labels is not None and labels.index is not None:
            states = take_rows(states, labels.index)
        normed: Tensor = self.norm(self.activation(self.dense(states)))
        return normed
