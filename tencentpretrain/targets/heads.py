"""What targets with one output layer and a cross entropy have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from tencentpretrain.targets.base import Target
from tencentpretrain.targets.cross_entropy import class_loss, vocabulary_loss
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


class VocabularyTarget(Target):
    """Predicts entries of a vocabulary with one output layer, at positions or parts of them."""

    output: VocabularyHead
    smoothing: float = 0.0
    """Part of the probability of a label that is spread over the whole vocabulary."""

    @abstractmethod
    def transform(self, out: ModelOutput, batch: Batch) -> Tensor:
        """States [K, E] before the output layer at the supervised positions, else at all."""

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        logits: Tensor = self.output(self.transform(out, batch))
        return logits

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        labels, head = batch.labels[self.label].values.flatten(), self.output
        states = self.transform(out, batch)
        loss, accuracy = vocabulary_loss(states, head.weight, head.bias, labels, self.smoothing)
        return TargetOutput({self.label: loss}, {f"{self.label}/accuracy": accuracy})


class ClassTarget(Target):
    """Predicts one of a few classes for each supervised row or position."""

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        labels = batch.labels[self.label].values.flatten()
        loss, accuracy = class_loss(self.logits(out, batch), labels)
        return TargetOutput({self.label: loss}, {f"{self.label}/accuracy": accuracy})
