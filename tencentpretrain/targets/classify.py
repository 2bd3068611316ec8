"""One label for a whole row: next sentence, sentence order, or the classes of a task."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tencentpretrain.config import PositiveInt, Probability
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, TargetConfig
from tencentpretrain.targets.heads import ClassTarget
from tencentpretrain.types import Batch, Hidden, ModelOutput

PoolingName = Literal["first", "last", "mean", "max"]


def pool(hidden: Hidden, pooling: PoolingName) -> Tensor:
    """One vector [B, D] for each row of `hidden`, over its valid positions only."""
    states, valid = hidden.states, hidden.layout.valid
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        last = (valid * torch.arange(1, valid.shape[1] + 1, device=valid.device)).argmax(1)
        return states[torch.arange(len(states), device=valid.device), last]
    if pooling == "max":
        return states.masked_fill(~valid[..., None], torch.finfo(states.dtype).min).amax(1)
    total = (states * valid[..., None]).sum(1)
    return total / valid.sum(1, keepdim=True).clamp(min=1)


@TARGETS.register("classify")
class ClassifyTarget(ClassTarget):
    """Pools a row, then linear, tanh, dropout and output layer (BERT's pooler and classifier)."""

    class Config(TargetConfig):
        classes: PositiveInt
        """Number of classes."""
        pooling: PoolingName = "first"
        """What stands for the row: its first or last position, or the mean or maximum of all."""
        dropout: Probability = 0.0
        """Dropout rate before the output layer."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "classify") -> None:
        super().__init__(name)
        self.pooling = config.pooling
        self.dense = nn.Linear(sizes.hidden, sizes.hidden)
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(sizes.hidden, config.classes)

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Scores [B, classes]."""
        pooled = torch.tanh(self.dense(pool(out.hidden, self.pooling)))
        logits: Tensor = self.output(self.dropout(pooled))
        return logits


@TARGETS.register("nsp")
class NspTarget(ClassifyTarget):
    """Whether the second text follows the first (0) or is random (1); Devlin et al., 2019."""

    class Config(ClassifyTarget.Config):
        classes: PositiveInt = 2
        """Number of classes."""


@TARGETS.register("sop")
class SopTarget(NspTarget):
    """Whether two halves are in order (0) or swapped (1); ALBERT, Lan et al., 2020."""
