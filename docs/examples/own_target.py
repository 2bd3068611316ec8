"""A target of your own: masked words with the focal loss (Lin et al., 2017, arXiv:1708.02002)."""

import torch
import torch.nn.functional as F

from tencentpretrain.config import NonNegativeFloat
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS
from tencentpretrain.targets.mlm import MlmTarget
from tencentpretrain.types import Batch, ModelOutput, Ratio, TargetOutput


@TARGETS.register("focal_mlm")
class FocalMlmTarget(MlmTarget):
    """Weighs each masked word by (1 - p) ^ gamma, so that easy ones count less."""

    class Config(MlmTarget.Config):
        gamma: NonNegativeFloat = 2.0
        """Exponent of the weight; 0 is the ordinary cross entropy."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "mlm") -> None:
        super().__init__(config, sizes, name)
        self.gamma = config.gamma

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        """Sums and counts over the supervised positions; the trainer divides them."""
        labels = batch.labels[self.label].values.flatten()
        logits = self.logits(out, batch).float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        weighted = (1 - torch.exp(-loss)) ** self.gamma * loss
        correct = logits.argmax(-1) == labels
        count = self.units(batch)
        return TargetOutput(
            losses={self.label: Ratio(weighted.sum(), count)},
            metrics={f"{self.label}/accuracy": Ratio(correct.sum(), count)},
        )
