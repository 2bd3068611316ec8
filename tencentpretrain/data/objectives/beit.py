"""Images with hidden rectangles whose codes are learned (Bao et al., 2022, BEiT, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.config import ConfigError, PositiveFloat, PositiveInt, Probability, check
from tencentpretrain.data.blocks import hide_blocks
from tencentpretrain.data.objectives.base import OBJECTIVES, Example
from tencentpretrain.data.objectives.codes import CodesConfig, CodesObjective
from tencentpretrain.data.objectives.masked_image import MaskedImageConfig, MaskedImageObjective
from tencentpretrain.types import SRC, Batch, Labels

if TYPE_CHECKING:
    from tencentpretrain.targets.companion import Companion, Setting


@OBJECTIVES.register("beit")
class BeitObjective(CodesObjective, MaskedImageObjective):
    """A learned vector stands for rectangles of patches; the code of each is the label.

    Which patches are hidden is known on the CPU; the codes are what an annotator adds.
    """

    class Config(MaskedImageConfig):
        mask_rate: Probability = 0.4
        """Greatest share of the patches that is hidden."""
        least_block: PositiveInt = 16
        """Least area of a hidden rectangle that is drawn, in patches."""
        least_ratio: PositiveFloat = 0.3
        """Least height over width of a rectangle; the greatest is its inverse."""
        class_token: bool = True
        """Whether the model's embedding has a class token before the patches."""
        codes: CodesConfig = CodesConfig()
        """Where the codes of images come from."""

        @check("transform", "patch_size", "mask_rate", "least_block")
        def _blocks_fit(self) -> str | None:
            most = int(self.side**2 * self.mask_rate)
            if 0 < self.least_block <= most:
                return None
            return (
                f"least_block must be at most {most} patches, which are mask_rate={self.mask_rate} "
                f"of {self.side} x {self.side}, but is {self.least_block}"
            )

        @check("least_ratio")
        def _ratio_is_least(self) -> str | None:
            if self.least_ratio <= 1:
                return None
            return f"least_ratio must be at most 1, but is {self.least_ratio}"

    config: Config
    supervises = ("mlm",)
    first_code = 0

    def hide(self, random: Generator) -> NDArray[np.bool_]:
        config = self.config
        most = int(config.side**2 * config.mask_rate)
        blocks = hide_blocks(random, config.side, most, config.least_block, config.least_ratio)
        return blocks.reshape(-1)

    def seen(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"masked": hidden}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """The labels are numbers of patches until their codes are known."""
        batch = super().collate(examples)
        count, before = self.config.side**2, int(self.config.class_token)
        patch = batch.labels["mlm"].values
        index = patch // count * (count + before) + patch % count + before
        batch.labels["mlm"] = Labels(patch, index)
        return batch

    def images(self, batch: Batch) -> Tensor:
        return batch.streams[SRC].inputs["pixels"]

    def with_codes(self, batch: Batch, codes: Tensor) -> Batch:
        labels = batch.labels["mlm"]
        values = codes.flatten().index_select(0, labels.values)
        return replace(batch, labels=batch.labels | {"mlm": Labels(values, labels.index)})

    def companion(self, setting: Setting) -> Companion:
        """The autoencoder.

        Raises:
            UserError: as for all; and if the model's embedding makes other positions.
        """
        patches, config = setting.patches, self.config
        if patches is not None and patches.before != config.class_token:
            raise ConfigError.at(
                "model.objective.class_token",
                f"must be {bool(patches.before)}, as in the patch part of the model's embedding",
            )
        return super().companion(setting)
