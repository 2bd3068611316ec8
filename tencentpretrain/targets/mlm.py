"""Masked language modelling (Devlin et al., 2019, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tencentpretrain.config import PositiveFloat
from tencentpretrain.layers.activation import ActivationName, build_activation
from tencentpretrain.layers.norm import NormName, build_norm
from tencentpretrain.layers.padding import take_rows
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Target, TargetConfig
from tencentpretrain.targets.cross_entropy import vocabulary_loss
from tencentpretrain.types import Batch, ModelOutput, TargetOutput


class VocabularyHead(nn.Module):
    """Output layer over the vocabulary; `weight` [V, E] is what ties share with the word table."""

    def __init__(self, size: int, vocabulary: int, *, has_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, size))
        self.bias = nn.Parameter(torch.empty(vocabulary)) if has_bias else None

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight, self.bias)


@TARGETS.register("mlm")
class MlmTarget(Target):
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
        """States [K, E] before the output layer at the supervised positions, else at all."""
        states = out.hidden.states.flatten(0, 1)
        labels = batch.labels.get(self.label)
        if labels is not None and labels.index is not None:
            states = take_rows(states, labels.index)
        normed: Tensor = self.norm(self.activation(self.dense(states)))
        return normed

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        logits: Tensor = self.output(self.transform(out, batch))
        return logits

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        labels = batch.labels[self.label].values.flatten()
        head = self.output
        loss, accuracy = vocabulary_loss(self.transform(out, batch), head.weight, head.bias, labels)
        return TargetOutput({self.label: loss}, {f"{self.label}/accuracy": accuracy})
