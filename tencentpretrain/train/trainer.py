"""The one training loop. It knows no task, no modality and no method."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor

from tencentpretrain.data.loader import Loader
from tencentpretrain.data.order import hash_int
from tencentpretrain.distributed.parallel import Parallel, summed
from tencentpretrain.errors import TrainingError
from tencentpretrain.model import Model
from tencentpretrain.train.callbacks.base import Callback
from tencentpretrain.train.meter import Meter, Speed
from tencentpretrain.train.precision import (
    autocast,
    peak_flops,
    resolve_precision,
)
from tencentpretrain.train.schedule import Schedule
from tencentpretrain.train.trainer_config import TrainerConfig
from tencentpretrain.types import Batch, TargetOutput

MAX_ROLLBACKS: Final = 10
ECHO_SECONDS: Final = 5.0
"""For so long a second signal counts as the first one, where a launcher may repeat it."""
RATES: Final = ("perf/tokens_per_s", "perf/examples_per_s")
"""What all ranks of data do in a second is the sum of what each does."""
Annotator = Callable[[Batch], Batch]


@dataclass
class StepStats:
    """What one step leaves on the device: summed outputs and the norm of the gradients []."""

    outputs: list[TargetOutput]
    grad_norm: Tensor
    is_finite: Tensor


class Trainer:
    """Runs steps, sums losses over micro-batches, and tells callbacks.

    Args:
        model: The model, on its device.
        optimizer: Over the model's trained parameters.
        schedule: Factor on the learning rate by step.
        loader: Where the micro-batches of each step come from.
        config: See `TrainerConfig`; `config.steps` must be resolved to `steps`.
        steps: Length of the run in updates.
        seed: Dropout is a function of it and the step, so that no generator needs saving.
        parallel: The other processes.
        callbacks: In any order; they run by their `order`.
        annotators: Frozen models that add to each batch before the forward pass.
    """

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        loader: Loader,
        config: TrainerConfig,
        *,
        steps: int,
        seed: int,
        parallel: Parallel,
        callbacks: Sequence[Callback] = (),
        annotators: Sequence[Annotator] = (),
    ) -> None:
        self.model, self.optimizer, self.schedule, self.loader = model, optimizer, schedule, loader
        self.config, self.steps, self.seed, self.parallel = config, steps, seed, parallel
        self.callbacks = sorted(callbacks, key=lambda callback: callback.order)
        self.annotators = annotators
        self.device = parallel.device
        self.dtype = resolve_precision(config.precision, self.device)
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.meter = Meter(model.target.weights, "train", self.device)
        self.speed = Speed(None)
        self.step = 0
        self.phase = "starting"
        """What is being done, for messages."""
        self.tokens = 0
        self.own_tokens = 0
        self.record: dict[str, float] = {}
        self.stop_reason: str | None = None
        self.signal: tuple[str, float] | None = None
        self.grad_norm = torch.zeros((), device=self.device)
        self.nonfinite_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self.skipped = 0
        self.rollbacks = 0
        self.restore: Callable[[Trainer], None] | None = None

    def fit(self) -> None:
        """Train from `self.step` to the end of the run, or until asked to stop.

        Raises:
            TrainingError: if a loss or gradient is not finite, under the policy "raise".
        """
        self.speed = Speed(peak_flops(self.device, self.dtype))
        self.call("fit_start")
        ending = self.step + (self.config.stop_after or self.steps)
        batches = iter(self.loader)
        with self.signals():
            while self.step < self.steps and self.stop_reason is None:
                self.phase = "reading data"
                micros = self.speed.next(batches)
                self.phase = "training"
                self.call("step_start")
                self.account(self.train_step(micros), micros)
                self.step += 1
                if self.step == ending and self.step < self.steps:
                    self.stop_reason = "trainer.stop_after"
                if self.step % self.config.log_every == 0 or self.step == self.steps:
                    if self.check_finite():
                        batches = iter(self.loader)
                        continue
                    self.log()
                self.call("step_end")
                self.record = {}
                self.stop_reason = self.stop_reason or self.parallel.stop(self.signalled)
            self.call("fit_end")

    def train_step(self, micros: list[Batch]) -> StepStats:
        """One update from micro-batches, exact however they are cut: sums over global counts."""
        torch.manual_seed(hash_int(self.seed, self.step, self.parallel.rank))
        self.model.train()
        micros = [batch.to(self.device) for batch in micros]
        units = self.parallel.sum(self.count_units(micros))
        outputs = []
        for number, batch in enumerate(micros, start=1):
            for annotate in self.annotators:
                batch = annotate(batch)
            self.parallel.sync(self.model, number == len(micros))
            outputs.append(self.forward_backward(batch, units))
            self.call("after_backward", batch, units, number == len(micros))
        self.call("before_optimizer_step")
        ratios = [ratio for output in outputs for ratio in output.losses.values()]
        is_finite = torch.stack([torch.isfinite(ratio.total.detach()) for ratio in ratios]).all()
        limit = self.config.max_norm or float("inf")
        grad_norm, is_finite = self.parallel.clip(self.model.parameters(), limit, is_finite)
        self.update(is_finite)
        return StepStats(outputs, grad_norm, is_finite)

    def count_units(self, micros: list[Batch]) -> dict[str, Tensor]:
        """Supervised units of the whole step by target, known before the first forward pass."""
        units = self.model.target.units(micros[0])
        for batch in micros[1:]:
            for name, count in self.model.target.units(batch).items():
                units[name] = units[name] + count
        return units

    def forward_backward(self, batch: Batch, units: dict[str, Tensor]) -> TargetOutput:
        """Add the gradients of one micro-batch, divided by the `units` of the whole step."""
        with autocast(self.dtype, self.device):
            output: TargetOutput = self.model(batch)
        weights = self.model.target.weights
        losses = [
            weights[name] * ratio.total / units[name].clamp(min=1)
            for name, ratio in output.losses.items()
        ]
        # Gradients are averaged over the ranks of data, but the units are those of all.
        (self.parallel.world * torch.stack(losses).sum()).backward()
        return output

    def update(self, is_finite: Tensor) -> None:
        """Step the optimiser unless `is_finite` [] is False; fused ones look on the device."""
        factor = self.schedule(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = rate * factor
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # Beside parameters on the host: torch would not wait until it has come there.
            place = self.optimizer.param_groups[0]["params"][0].device
            self.optimizer.found_inf = (~is_finite).float().to(place)  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(is_finite):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def account(self, stats: StepStats, micros: list[Batch]) -> None:
        """Add what a step gave to the metrics, on the device."""
        tokens = sum(batch.tokens for batch in micros)
        # Those that have one rank of data share its work.
        sharing = self.parallel.circle.world // self.parallel.world
        flops = sum(self.model.flops(batch) for batch in micros) / sharing
        self.speed.add(tokens, flops, self.config.batch_size // self.parallel.world)
        self.own_tokens += tokens
        for output in stats.outputs:
            self.meter.add(output, stats.is_finite)
        self.grad_norm = stats.grad_norm
        self.nonfinite_steps += ~stats.is_finite

    def log(self) -> None:
        """Fill `self.record`: the only place where the host waits for the device."""
        self.tokens, self.own_tokens = self.all_tokens(), 0
        speed = self.speed.read()
        together = [name for name in speed if name in RATES]
        speed |= summed({name: speed[name] for name in together}, self.parallel)
        self.record = self.meter.over(self.parallel).read() | {
            "optim/lr": self.optimizer.param_groups[0]["lr"],
            "optim/grad_norm": self.grad_norm.item(),
            "train/tokens": self.tokens,
            "train/epoch": self.loader.samples / len(self.loader.examples),
            **speed,
        }
        if self.skipped:
            self.record["train/skipped_steps"] = self.skipped
        self.meter.reset()

    def all_tokens(self) -> int:
        """Valid tokens of all steps so far, on all ranks of data."""
        return self.tokens + round(summed({"": self.own_tokens}, self.parallel)[""])

    def check_finite(self) -> bool:
        """Act on steps whose loss or gradient was not finite; whether training was rolled back.

        Their updates did not happen, so the weights are those of before.

        Raises:
            TrainingError: under the policy "raise", or if a rollback is not possible.
        """
        count = int(self.nonfinite_steps.item())
        if count == 0:
            return False
        self.nonfinite_steps.zero_()
        self.skipped += count
        if self.config.nonfinite == "skip":
            return False
        if self.config.nonfinite == "rollback" and self.restore is not None:
            self.roll_back(self.restore)
            return True
        raise TrainingError(
            f"the loss or gradient was not finite in {count} step(s) up to step {self.step}; the "
            "weights were not updated by them. Lower optim.lr or trainer.max_norm, or set "
            "trainer.nonfinite=skip (go on without such steps) or rollback"
        )

    def roll_back(self, restore: Callable[[Trainer], None]) -> None:
        """Go back to the newest checkpoint, and on with batches that were not read yet.

        Raises:
            TrainingError: after `MAX_ROLLBACKS` of them.
        """
        samples, skipped, rollbacks = self.loader.samples, self.skipped, self.rollbacks + 1
        if rollbacks > MAX_ROLLBACKS:
            raise TrainingError(
                f"training was rolled back {MAX_ROLLBACKS} times and the loss is still not finite "
                f"at step {self.step}; lower optim.lr"
            )
        restore(self)
        self.loader.load_state_dict({"samples": samples})
        self.nonfinite_steps.zero_()
        self.skipped, self.rollbacks = skipped, rollbacks
        self.call("fit_start")
        self.speed.start()

    def request_stop(self, reason: str) -> None:
        """End after the current step, saving; `reason` is told to the user."""
        self.stop_reason = self.stop_reason or reason

    @property
    def signalled(self) -> str | None:
        """Name of the signal that asked this process to stop."""
        return None if self.signal is None else self.signal[0]

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM finish the step and save; a second one ends at once, unsaved."""

        def handle(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if self.signal is None:
                self.signal = signal.Signals(number).name, now
            # A launcher sends on what the terminal has sent to all processes already.
            elif self.parallel.circle.world == 1 or now - self.signal[1] > ECHO_SECONDS:
                raise KeyboardInterrupt

        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(number, handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)

    def call(self, moment: str, *values: Any) -> None:
        """Tell every callback that `moment` has come."""
        for callback in self.callbacks:
            getattr(callback, moment)(self, *values)

    def state_dict(self) -> dict[str, Any]:
        """All plain values of the training state; tensors are the model's and the optimiser's."""
        return {
            "step": self.step,
            "tokens": self.all_tokens(),
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "nonfinite_steps": int(self.nonfinite_steps),
            "loader": self.loader.state_dict(),
            "meter": self.meter.over(self.parallel).state_dict(),
            "callbacks": {c.key or type(c).__name__: c.state_dict() for c in self.callbacks},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.step, self.tokens, self.own_tokens = state["step"], state["tokens"], 0
        self.skipped, self.rollbacks = state["skipped"], state["rollbacks"]
        self.nonfinite_steps.fill_(state["nonfinite_steps"])
        self.loader.load_state_dict(state["loader"])
        self.meter.load_state_dict(state["meter"])
        if self.parallel.rank != 0:
            self.meter.empty()  # its sums are those of all ranks together
        for callback in self.callbacks:
            key = callback.key or type(callback).__name__
            callback.load_state_dict(state["callbacks"].get(key, {}))
