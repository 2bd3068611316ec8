"""Codes of an autoencoder that are hardly taken start again beside those taken most."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from tencentpretrain.config import ComponentConfig, PositiveInt, Probability
from tencentpretrain.data.order import hash_int
from tencentpretrain.distributed.layout import is_shared, put
from tencentpretrain.layers.codebook import Codebook, split_busiest
from tencentpretrain.train.callbacks.base import CALLBACKS, ConfiguredCallback

if TYPE_CHECKING:
    from tencentpretrain.train.trainer import Trainer

log = logging.getLogger("tencentpretrain")

RESTART: Final = 0xC0DE
"""Part of the key of where codes start again."""


@CALLBACKS.register("restart_codes")
class RestartCodes(ConfiguredCallback):
    """Splits the codes taken most, so that all of them are of use; a function of seed and step.

    What was counted lies in the codebook and is saved with it, so that a run in parts does the
    same.
    """

    class Config(ComponentConfig):
        every: PositiveInt = 100
        """Steps between two looks at how often each code was taken."""
        until: PositiveInt | None = None
        """Step behind which codes stay; null is the first half of the run."""
        least: Probability = 0.03
        """Codes taken less often than this share of the mean start again."""

    config: Config

    def step_start(self, trainer: Trainer) -> None:
        last = self.config.until or trainer.steps // 2
        if not 0 < trainer.step <= last or trainer.step % self.config.every:
            return
        for number, module in enumerate(trainer.model.modules()):
            if isinstance(module, Codebook):
                self._split(module, trainer, number)

    def _split(self, codebook: Codebook, trainer: Trainer, number: int) -> None:
        usage = trainer.parallel.sum({"usage": codebook.usage})["usage"]
        draw = torch.Generator().manual_seed(
            hash_int(trainer.seed, RESTART, trainer.step, number) >> 1
        )
        noise = torch.randn(codebook.weight.shape, generator=draw).to(usage.device)
        weight: Tensor = codebook.weight
        with torch.no_grad():
            whole = weight.full_tensor() if is_shared(weight) else weight
            moved = split_busiest(whole, usage, self.config.least, noise)
            put(weight, whole)
        codebook.usage.zero_()
        if moved:
            log.info(f"step {trainer.step}: {moved} of {len(usage)} codes start again")
