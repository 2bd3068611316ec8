"""Codes of an autoencoder follow the vectors that they replace, once a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tencentpretrain.distributed.layout import is_shared, put
from tencentpretrain.layers.codebook import Codebook
from tencentpretrain.train.callbacks.base import Callback

if TYPE_CHECKING:
    from tencentpretrain.train.trainer import Trainer


class AverageCodes(Callback):
    """Moves a codebook with averages by the vectors of all micro-batches and processes.

    Args:
        codebook: Its weights have no gradient.
    """

    order = 5
    """Before evaluation and saving, which read the codes of the step."""

    def __init__(self, codebook: Codebook) -> None:
        self._codebook = codebook

    def step_start(self, trainer: Trainer) -> None:
        assert self._codebook.averages is not None
        self._codebook.averages.clear()

    def step_end(self, trainer: Trainer) -> None:
        averages, weight = self._codebook.averages, self._codebook.weight
        assert averages is not None
        taken = trainer.parallel.sum({"taken": averages.taken})["taken"]
        # A step that is not finite moves nothing else either.
        is_finite = torch.isfinite(taken).all() & torch.isfinite(trainer.grad_norm)
        with torch.no_grad():
            whole = weight.full_tensor() if is_shared(weight) else weight
            put(weight, averages.move(whole, taken, is_finite))
