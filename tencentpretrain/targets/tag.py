"""One label for each token (named entities and other tagging)."""

from __future__ import annotations

from torch import Tensor, nn

from tencentpretrain.config import PositiveInt, Probability
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, TargetConfig
from tencentpretrain.targets.heads import ClassTarget, supervised_states
from tencentpretrain.types import Batch, ModelOutput


@TARGETS.register("tag")
class TagTarget(ClassTarget):
    """Dropout and a linear layer on each supervised position (the first piece of each word)."""

    class Config(TargetConfig):
        classes: PositiveInt
        """Number of tags."""
        dropout: Probability = 0.1
        """Dropout rate before the output layer."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "tag") -> None:
        super().__init__(name)
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(sizes.hidden, config.classes)

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Scores [K, classes] at the supervised positions, or [B * S, classes] without labels."""
        states = supervised_states(out, batch, self.label)
        logits: Tensor = self.output(self.dropout(states))
        return logits
