"""Where metrics go: the console, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tencentpretrain.train.callbacks.base import Callback

if TYPE_CHECKING:
    from tencentpretrain.train.trainer import Trainer

log = logging.getLogger("tencentpretrain")

SHOWN_WAIT: Final = 0.05
"""A greater share of time without a batch is told on the console."""


class Console(Callback):
    """One readable line for each log step and each evaluation."""

    order = 10

    def fit_start(self, trainer: Trainer) -> None:
        self.began, self.first = time.perf_counter(), trainer.step

    def step_end(self, trainer: Trainer) -> None:
        record = trainer.record
        if not record:
            return
        done = trainer.step - self.first
        seconds = (time.perf_counter() - self.began) / done * (trainer.steps - trainer.step)
        parts = [f"step {trainer.step}/{trainer.steps}", f"loss {record['train/loss']:.4f}"]
        parts += [
            f"{name.removeprefix('train/').replace('/accuracy', ' acc')} {value:.3f}"
            for name, value in record.items()
            if name.endswith("/accuracy")
        ]
        parts += [
            f"lr {record['optim/lr']:.2e}",
            f"grad {record['optim/grad_norm']:.2f}",
            f"{record['perf/tokens_per_s']:,.0f} tokens/s",
        ]
        if "perf/peak_share" in record:
            parts.append(f"{record['perf/peak_share']:.0%} of peak")
        if record["perf/data_wait"] > SHOWN_WAIT:
            parts.append(f"{record['perf/data_wait']:.0%} waiting for data")
        if "train/skipped_steps" in record:
            parts.append(f"skipped {record['train/skipped_steps']}")
        log.info(" | ".join([*parts, f"eta {duration(seconds)}"]))

    def evaluated(self, trainer: Trainer, results: dict[str, float]) -> None:
        values = "  ".join(f"{name} {value:.4f}" for name, value in results.items())
        log.info(f"step {trainer.step}/{trainer.steps} | {values}")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds in the shortest form."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class JsonLines(Callback):
    """Appends one object a line to metrics.jsonl; a resumed run leaves no line twice."""

    order = 10

    def __init__(self, path: Path) -> None:
        self.path = path

    def fit_start(self, trainer: Trainer) -> None:
        """Drop lines of steps that will be done again, and a line that was cut off."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                break
            if step <= trainer.step:
                kept.append(line + "\n")
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.path)

    def step_end(self, trainer: Trainer) -> None:
        if trainer.record:
            self.write(trainer.step, trainer.record)

    def evaluated(self, trainer: Trainer, results: dict[str, float]) -> None:
        self.write(trainer.step, results)

    def write(self, step: int, record: dict[str, float]) -> None:
        finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")


class TensorBoard(Callback):
    """Writes the same numbers as event files for TensorBoard."""

    order = 10

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fit_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.directory), purge_step=trainer.step + 1)

    def step_end(self, trainer: Trainer) -> None:
        self.write(trainer.step, trainer.record)

    def evaluated(self, trainer: Trainer, results: dict[str, float]) -> None:
        self.write(trainer.step, results)

    def write(self, step: int, record: dict[str, float]) -> None:
        for name, value in record.items():
            self.writer.add_scalar(name, value, step)

    def fit_end(self, trainer: Trainer) -> None:
        self.writer.close()
