"""Next-token prediction (Radford et al., 2019)."""

from __future__ import annotations

from torch import Tensor

from tencentpretrain.layers.padding import take_rows
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Target, TargetConfig
from tencentpretrain.targets.cross_entropy import vocabulary_loss
from tencentpretrain.targets.mlm import VocabularyHead
from tencentpretrain.types import Batch, ModelOutput, TargetOutput


@TARGETS.register("lm")
class LmTarget(Target):
    """Predicts the following token at each position with one output layer."""

    class Config(TargetConfig):
        bias: bool = False
        """Whether the output layer has a bias."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "lm") -> None:
        super().__init__(name)
        self.output = VocabularyHead(sizes.hidden, sizes.vocabulary, has_bias=config.bias)

    def _states(self, out: ModelOutput, batch: Batch) -> Tensor:
        states = out.hidden.states.flatten(0, 1)
        labels = batch.labels.get(self.label)
        if labels is None or labels.index is None:
            return states
        return take_rows(states, labels.index)

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        logits: Tensor = self.output(self._states(out, batch))
        return logits

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        labels = batch.labels[self.label].values.flatten()
        head = self.output
        loss, accuracy = vocabulary_loss(self._states(out, batch), head.weight, head.bias, labels)
        return TargetOutput({self.label: loss}, {f"{self.label}/accuracy": accuracy})
