"""Evaluation during training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from tencentpretrain.model import Model
from tencentpretrain.train.callbacks.base import Callback
from tencentpretrain.train.meter import Meter
from tencentpretrain.train.precision import autocast
from tencentpretrain.types import Batch

if TYPE_CHECKING:
    from tencentpretrain.train.trainer import Trainer

Evaluate = Callable[["Trainer"], dict[str, float]]


class Evaluator(Callback):
    """Calls `evaluate` every so many steps and at the end of the run, and tells the results."""

    order = 20

    def __init__(self, evaluate: Evaluate, every: int) -> None:
        self.evaluate = evaluate
        self.every = every

    def step_end(self, trainer: Trainer) -> None:
        if trainer.step % self.every == 0 or trainer.step == trainer.steps:
            results = self.evaluate(trainer)
            if results:
                trainer.call("evaluated", results)
            trainer.speed.start()


def evaluate_loss(model: Model, batches: Iterable[Batch], trainer: Trainer) -> dict[str, float]:
    """Losses and metrics of `model` over `batches`, as ratios of sums over all of them."""
    meter = Meter(model.target.weights, "eval", trainer.device)
    model.eval()
    with torch.inference_mode(), autocast(trainer.dtype, trainer.device):
        for batch in batches:
            meter.add(model(batch.to(trainer.device)))
    return meter.read()
