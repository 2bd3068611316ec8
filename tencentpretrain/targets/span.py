"""Where in a row a span begins and ends (extractive question answering)."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from tencentpretrain.config import Probability
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, TargetConfig
from tencentpretrain.targets.heads import ClassTarget
from tencentpretrain.types import Batch, ModelOutput

NEVER: Final = -1e9
"""Score of padding: its probability is 0, and it stays finite at any temperature."""


@TARGETS.register("span")
class SpanTarget(ClassTarget):
    """Scores every position as the start and as the end of an answer; Devlin et al., 2019, 4.2.

    Labels [B, 2] are the positions of the first and the last token of the answer, or `IGNORE` for
    both in rows that have none to learn. The loss is the mean over all starts and ends. Padding is
    never an answer, so that it changes no probability.
    """

    class Config(TargetConfig):
        dropout: Probability = 0.0
        """Dropout rate before the output layer."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "span") -> None:
        super().__init__(name)
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(sizes.hidden, 2)

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Scores [2B, S] of the positions: as start in the first row, as end in it, and so on."""
        scores = self.output(self.dropout(out.hidden.states)).transpose(1, 2)
        logits: Tensor = scores.masked_fill(~out.hidden.layout.valid[:, None], NEVER)
        return logits.flatten(0, 1)
