"""Evaluation during training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from tencentpretrain.data.loader import Shared
from tencentpretrain.model import Model
from tencentpretrain.targets.companion import Completion
from tencentpretrain.train.callbacks.base import Callback
from tencentpretrain.train.meter import Meter
from tencentpretrain.train.precision import autocast
from tencentpretrain.types import Ratio, TargetOutput

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
            trainer.phase = "evaluating"
            # The last digit of what each computes may differ, and with it which is the best.
            results = trainer.parallel.circle.first(self.evaluate(trainer))
            if results:
                trainer.call("evaluated", results)
            trainer.speed.start()


def evaluate_loss(model: Model, batches: Iterable[Shared], trainer: Trainer) -> dict[str, float]:
    """Losses and metrics of `model` over `batches`, as ratios of sums over all of them."""
    return _measure(model, batches, trainer, "eval").read()


def evaluate_mixture(
    model: Model, sources: Mapping[str, tuple[Iterable[Shared], float]], trainer: Trainer
) -> dict[str, float]:
    """Losses and metrics over each source apart, and over all of them.

    Args:
        model: What is evaluated.
        sources: Batches by name, and by how much their sums count in those over all.
        trainer: Of the model.

    Returns:
        Results of a source as `eval/<source>/...`, those over all as `eval/...`.
    """
    results: dict[str, float] = {}
    together = Meter(model.target.weights, "eval", trainer.device)
    for name, (batches, factor) in sources.items():
        meter = _measure(model, batches, trainer, f"eval/{name}")
        results |= meter.read()
        together.add(TargetOutput(_scaled(meter.losses, factor), _scaled(meter.metrics, factor)))
    return together.read() | results


def _measure(model: Model, batches: Iterable[Shared], trainer: Trainer, prefix: str) -> Meter:
    meter = Meter(model.target.weights, prefix, trainer.device)
    nothing = torch.zeros((), dtype=torch.bool, device=trainer.device)
    model.eval()
    # Not in inference mode: what is gathered from other processes is used in training, too.
    with torch.no_grad(), autocast(trainer.dtype, trainer.device):
        for shared in batches:
            batch = shared.batch.to(trainer.device)
            for annotate in trainer.annotators:
                batch = annotate(batch) if isinstance(annotate, Completion) else batch
            meter.add(model(batch), None if shared.counts else nothing)
    return meter.over(trainer.parallel)


def _scaled(ratios: Mapping[str, Ratio], factor: float) -> dict[str, Ratio]:
    return {name: Ratio(r.total * factor, r.count * factor) for name, r in ratios.items()}
