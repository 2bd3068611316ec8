"""Running a model over all examples of a file: scores, and outputs in the order of the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tencentpretrain.data.loader import evaluation_batches
from tencentpretrain.model import Model
from tencentpretrain.tasks.base import Task, TaskExamples
from tencentpretrain.train.meter import Meter
from tencentpretrain.train.precision import autocast
from tencentpretrain.types import Batch, TargetOutput


@dataclass(frozen=True)
class Machine:
    """How examples are computed: never what comes out.

    Args:
        device: Of the model.
        dtype: Of matrix products.
        batch_size: Examples at once.
        workers: Processes that make them.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    workers: int = 0


class _BySize:
    """Examples from the largest to the smallest: little padding, and memory runs out at once."""

    def __init__(self, examples: TaskExamples) -> None:
        self._examples = examples
        self.order = np.argsort(-examples.sizes(), kind="stable")

    def __len__(self) -> int:
        return len(self._examples)

    def make(self, epoch: int, index: int) -> Any:
        return self._examples.make(epoch, int(self.order[index]))

    def collate(self, examples: list[Any]) -> Batch:
        return self._examples.collate(examples)


def infer(
    task: Task[Any, Any],
    model: Model,
    examples: TaskExamples,
    machine: Machine,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Any], dict[str, float]]:
    """Outputs of all examples in their order and, where they are labelled, losses and scores.

    Args:
        task: What the model does.
        model: On the device of `machine`.
        examples: Of one file.
        machine: Where and how.
        progress: Told how many examples are done.
    """
    view = _BySize(examples)
    outputs: list[Any] = []
    meter = Meter(model.target.weights, "", machine.device)
    model.eval()
    with torch.no_grad(), autocast(machine.dtype, machine.device):
        for batch in evaluation_batches(view, machine.batch_size, workers=machine.workers):
            losses, answers = task.infer(model, batch.to(machine.device), examples.is_labelled)
            if losses is not None:
                meter.add(TargetOutput(losses.losses, {}))
            outputs += answers
            progress(len(outputs))
    restored = [outputs[place] for place in np.argsort(view.order)]
    if not examples.is_labelled:
        return restored, {}
    scores = {name.removeprefix("/"): value for name, value in meter.read().items()}
    return restored, scores | task.metrics(examples, restored)


def evaluate(
    task: Task[Any, Any], model: Model, examples: TaskExamples, machine: Machine, prefix: str
) -> dict[str, float]:
    """Losses and scores by name with `prefix`, such as "eval/loss"."""
    _, scores = infer(task, model, examples, machine)
    return {f"{prefix}/{name}": value for name, value in scores.items()}
