"""One label for a whole row: next sentence, sentence order, or the classes of a task."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tencentpretrain.config import PositiveFloat, PositiveInt, Probability
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.layers.norm import NormName, build_norm
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, TargetConfig
from tencentpretrain.targets.heads import ClassTarget
from tencentpretrain.types import Batch, Hidden, ModelOutput

PoolingName = Literal["first", "last", "mean", "max", "rest"]


def pool(hidden: Hidden, pooling: PoolingName) -> Tensor:
    """One vector [B, D] for each row of `hidden`, over its valid positions only.

    "rest" is the mean of all but the first one, as of the patches behind a class token.
    """
    states, valid = hidden.states, hidden.layout.valid
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        last = (valid * torch.arange(1, valid.shape[1] + 1, device=valid.device)).argmax(1)
        return states[torch.arange(len(states), device=valid.device), last]
    if pooling == "max":
        return states.masked_fill(~valid[..., None], torch.finfo(states.dtype).min).amax(1)
    if pooling == "rest":
        states, valid = states[:, 1:], valid[:, 1:]
    total = (states * valid[..., None]).sum(1)
    return total / valid.sum(1, keepdim=True).clamp(min=1)


@TARGETS.register("classify")
class ClassifyTarget(ClassTarget):
    """Pools a row, then maybe norm, linear and tanh, then dropout and output layer.

    Linear and tanh are BERT's pooler, and the head of ViT's pre-training (Dosovitskiy et al., 2021,
    section 3.1).
    """

    class Config(TargetConfig):
        classes: PositiveInt
        """Number of classes."""
        pooling: PoolingName = "first"
        """What stands for the row: its first or last position, the mean or maximum of all, or the
        mean of the rest behind the first one (BEiT)."""
        norm: NormName = "none"
        """Norm of what stands for the row (BEiT)."""
        norm_eps: PositiveFloat = 1e-12
        """Added to the variance in the norm."""
        dense: bool = True
        """Whether a linear layer and tanh precede the output layer (ViT is fine-tuned without)."""
        dropout: Probability = 0.0
        """Dropout rate before the output layer."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "classify") -> None:
        super().__init__(name)
        self.pooling = config.pooling
        self.norm = build_norm(config.norm, sizes.hidden, config.norm_eps)
        self.dense = nn.Linear(sizes.hidden, sizes.hidden) if config.dense else None
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(sizes.hidden, config.classes)

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Scores [B, classes]."""
        pooled = self.norm(pool(out.hidden, self.pooling))
        if self.dense is not None:
            pooled = torch.tanh(self.dense(pooled))
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
