"""Running a model over all examples of a file: scores, and outputs in the order of the file."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tencentpretrain.data.loader import shared_batches
from tencentpretrain.distributed.parallel import Parallel
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
        parallel: Processes that share the batches; None is this one alone.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    workers: int = 0
    parallel: Parallel | None = None

    def share(self, task: Task[Any, Any]) -> tuple[int, int]:
        """Which share of the batches is computed here, and how many there are."""
        parallel = self.parallel
        if parallel is None or (parallel.gathers and not task.is_uniform):
            return 0, 1
        return parallel.rank, parallel.world


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

    Of several processes each computes a share of the batches, and has the scores of all.

    Args:
        task: What the model does.
        model: On the device of `machine`.
        examples: Of one file.
        machine: Where and how.
        progress: Told how many examples are done.
    """
    view = _BySize(examples)
    rank, world = machine.share(task)
    own: list[list[Any]] = []
    done = 0
    nothing = torch.zeros((), dtype=torch.bool, device=machine.device)
    meter = Meter(model.target.weights, "", machine.device)
    model.eval()
    with torch.no_grad(), autocast(machine.dtype, machine.device):
        size, workers = machine.batch_size, machine.workers
        for shared in shared_batches(view, size, None, rank, world, workers):
            batch = shared.batch.to(machine.device)
            losses, answers = task.infer(model, batch, examples.is_labelled)
            if losses is not None:
                meter.add(TargetOutput(losses.losses, {}), None if shared.counts else nothing)
            own += [answers] * shared.counts
            done += len(answers) * shared.counts
            progress(done)
    if world > 1:
        assert machine.parallel is not None
        meter = meter.over(machine.parallel)
        own = gather_turns(own, machine.parallel)
    outputs = [output for answers in own for output in answers]
    restored = [outputs[place] for place in np.argsort(view.order)]
    if not examples.is_labelled:
        return restored, {}
    scores = {name.removeprefix("/"): value for name, value in meter.read().items()}
    return restored, scores | task.metrics(examples, restored)


def gather_turns(own: list[list[Any]], parallel: Parallel) -> list[list[Any]]:
    """Outputs of all batches, which were dealt to the ranks of data in turn, in their order."""
    plain = [[_plain(output) for output in answers] for answers in own]
    shares = dict(parallel.circle.gather([parallel.rank, plain]))
    return [
        [_restored(output) for output in shares[turn % parallel.world][turn // parallel.world]]
        for turn in range(sum(map(len, shares.values())))
    ]


def _plain(output: Any) -> Any:
    """An array as JSON data, bit for bit."""
    if not isinstance(output, np.ndarray):
        return output
    data = base64.b64encode(np.ascontiguousarray(output).tobytes()).decode()
    return {"dtype": output.dtype.str, "shape": output.shape, "data": data}


def _restored(output: Any) -> Any:
    if not isinstance(output, dict):
        return output
    flat = np.frombuffer(base64.b64decode(output["data"]), output["dtype"])
    return flat.reshape(output["shape"])


def evaluate(
    task: Task[Any, Any], model: Model, examples: TaskExamples, machine: Machine, prefix: str
) -> dict[str, float]:
    """Losses and scores by name with `prefix`, such as "eval/loss"."""
    _, scores = infer(task, model, examples, machine)
    return {f"{prefix}/{name}": value for name, value in scores.items()}
