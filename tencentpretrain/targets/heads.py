"""What targets with one output layer and a cross entropy have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.layers.padding import ROW_MULTIPLE, take_rows
from tencentpretrain.targets.base import Target
from tencentpretrain.targets.cross_entropy import class_loss, vocabulary_loss
from tencentpretrain.types import IGNORE, Batch, ModelOutput, Ratio, TargetOutput


def supervised_states(out: ModelOutput, batch: Batch, label: str) -> Tensor:
    """Last states [K, D] at the supervised positions of `label`; without labels at all of them."""
    states, labels = out.hidden.states, batch.labels.get(label)
    rows, length = states.flatten(0, 1), states.shape[1]
    if labels is None or labels.index is None:
        return rows
    index, width = labels.index, labels.width
    if width is not None and width != length:
        index = index // width * length + index % width
    return take_rows(rows, index)


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
        return F.linear(states, self.weight, self.bias)

    def loss(self, states: Tensor, labels: Tensor, smoothing: float) -> tuple[Ratio, Ratio]:
        """Loss and accuracy of `labels` [K] for `states` [K, E]; see `vocabulary_loss`."""
        return vocabulary_loss(states, self.weight, self.bias, labels, smoothing)


class VocabularyTarget(Target):
    """Predicts entries of a vocabulary with one output layer, at positions or parts of them."""

    output: VocabularyHead
    smoothing: float = 0.0
    """Part of the probability of a label that is spread over the whole vocabulary."""

    @abstractmethod
    def prepare(self, states: Tensor) -> Tensor:
        """What the output layer reads, [K, E], of `states` [K, D]."""

    def supervised(self, out: ModelOutput, batch: Batch) -> Tensor:
        """States [K, D] at the supervised positions; without labels at all of them."""
        return supervised_states(out, batch, self.label)

    def transform(self, out: ModelOutput, batch: Batch) -> Tensor:
        """What the output layer reads, [K, E], at the supervised positions, else at all."""
        return self.prepare(self.supervised(out, batch))

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        logits: Tensor = self.output(self.transform(out, batch))
        return logits

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        labels, states = batch.labels[self.label].values.flatten(), self.supervised(out, batch)
        count, missing = len(labels), -len(labels) % ROW_MULTIPLE
        if missing:
            states = F.pad(states, (0, 0, 0, missing))
            labels = F.pad(labels, (0, missing), value=IGNORE)
        loss, accuracy = self.output.loss(self.prepare(states), labels, self.smoothing)
        if loss.each is not None:
            loss = replace(loss, each=loss.each[:count])
        return TargetOutput({self.label: loss}, {f"{self.label}/accuracy": accuracy})


class ClassTarget(Target):
    """Predicts one of a few classes for each supervised row or position.

    Labels are numbers of classes, or [B, C] probabilities of each class.
    """

    def units(self, batch: Batch) -> Tensor:
        labels = batch.labels[self.label].values
        if labels.is_floating_point():
            return labels.new_full((), len(labels))
        return super().units(batch)

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        labels = batch.labels[self.label].values
        if not labels.is_floating_point():
            labels = labels.flatten()
        loss, accuracy = class_loss(self.logits(out, batch), labels)
        return TargetOutput({self.label: loss}, {f"{self.label}/accuracy": accuracy})
