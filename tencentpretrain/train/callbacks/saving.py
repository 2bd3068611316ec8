"""When checkpoints are saved; `CheckpointStore` knows how."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tencentpretrain.config import Config, PositiveInt
from tencentpretrain.train.base import model_tensors
from tencentpretrain.train.callbacks.base import Callback
from tencentpretrain.train.checkpoint import Checkpoint, CheckpointStore
from tencentpretrain.train.counts import gather_counts, keep_counts_once
from tencentpretrain.train.load import load_weights, state_tensors
from tencentpretrain.train.optimizer_state import load_optimizer, optimizer_tensors
from tencentpretrain.train.saved_checkpoint import step_directories

if TYPE_CHECKING:
    from tencentpretrain.train.trainer import Trainer

log = logging.getLogger("tencentpretrain")


class CheckpointConfig(Config):
    """When a run is saved and what is kept."""

    every: PositiveInt = 1000
    """Steps between two checkpoints; the end of a run and an interruption are always saved."""
    keep_last: PositiveInt = 2
    """How many of the newest checkpoints are kept."""
    keep_every: PositiveInt | None = None
    """Checkpoints at multiples of so many steps are kept for ever."""
    background: bool = False
    """Whether training goes on while a copy of the state is written, which stays in the memory of
    the host from one checkpoint to the next."""
    save_best: bool = True
    """Also save at an evaluation that is the best so far, and keep that one."""


class Checkpointer(Callback):
    """Saves everything that a restart needs; the run cannot be resumed without it.

    Args:
        store: Where to.
        config: When.
        files: Saved in each checkpoint: config.yaml, tokenizer and what a task learned.
        score: Evaluation result that decides which checkpoint is the best.
        fingerprints: What the state belongs to, by name.
        left_out: Names of weights that another checkpoint holds, to which `files` refer.
    """

    order = 90

    def __init__(
        self,
        store: CheckpointStore,
        config: CheckpointConfig,
        files: Mapping[str, bytes | Path],
        score: str,
        fingerprints: Mapping[str, str],
        left_out: Iterable[str] = (),
    ) -> None:
        self.store, self.config, self.files = store, config, files
        self.score, self.fingerprints, self.left_out = score, fingerprints, frozenset(left_out)
        self.best: float | None = None
        self.scored: tuple[int, float] | None = None
        self.saved_step = -1
        self.writing: Future[Path] | None = None

    def fit_start(self, trainer: Trainer) -> None:
        """A rollback needs somewhere to go back to, from the first step on."""
        if trainer.config.nonfinite == "rollback" and not step_directories(self.store.directory):
            self.save(trainer)

    def evaluated(self, trainer: Trainer, results: dict[str, float]) -> None:
        if self.score in results:
            self.scored = trainer.step, results[self.score]

    def step_end(self, trainer: Trainer) -> None:
        # What failed is told at the next save: then all processes know of it.
        if self.writing and self.writing.done() and self.writing.exception() is None:
            self.finish(trainer)
        if self._is_best(trainer) or trainer.step % self.config.every == 0:
            if trainer.config.nonfinite == "rollback" and int(trainer.nonfinite_steps):
                return  # the rollback to come must find what was before those steps
            self.save(trainer)

    def fit_end(self, trainer: Trainer) -> None:
        if self.saved_step != trainer.step:
            self.save(trainer)
        self.finish(trainer)

    def finish(self, trainer: Trainer) -> None:
        """Wait for what is being written.

        Raises:
            CheckpointError: if it cannot be.
        """
        if self.writing is not None:
            trainer.phase = "saving"
            writing, self.writing = self.writing, None
            trainer.call("checkpoint_saved", writing.result())

    def save(self, trainer: Trainer) -> None:
        """Save the state of `trainer` as it is between two steps, or begin to."""
        self.finish(trainer)
        trainer.phase = "saving"
        if trainer.config.nonfinite == "raise":
            trainer.check_finite()
        score = self.scored[1] if self.scored and self.scored[0] == trainer.step else None
        gather_counts(trainer.model, trainer.parallel)
        weights = state_tensors(trainer.model)
        saved = (
            trainer.step,
            {
                "model": {n: t for n, t in weights.items() if n not in self.left_out},
                "optimizer": optimizer_tensors(trainer.optimizer, trainer.model),
            },
            trainer.state_dict(),
            self.files,
            score,
            self.fingerprints,
        )
        self.saved_step = trainer.step
        if self.config.background:
            self.writing = self.store.save_in_background(*saved)
        else:
            trainer.call("checkpoint_saved", self.store.save(*saved))

    def restore(self, trainer: Trainer, checkpoint: Checkpoint | None = None) -> None:
        """Bring `trainer` to `checkpoint`, by default the newest one.

        Raises:
            CheckpointError: if there is none or it does not fit.
        """
        self.finish(trainer)
        found = checkpoint or self.store.latest()
        if found is None:
            return
        # Tensors are mapped from the files and read as they are needed: none is held twice.
        load_weights(trainer.model, model_tensors(found))
        keep_counts_once(trainer.model, trainer.parallel)
        load_optimizer(trainer.optimizer, trainer.model, found.lazy_tensors("optimizer"))
        trainer.load_state_dict(found.state())
        # After a rollback the position in the data is new, and must be saved even if no step is.
        self.saved_step = trainer.step if checkpoint else -1

    def _is_best(self, trainer: Trainer) -> bool:
        if not self.config.save_best or not self.scored or self.scored[0] != trainer.step:
            return False
        score = self.scored[1]
        if not math.isfinite(score):
            return False
        if self.best is not None and not (
            score < self.best if self.store.mode == "min" else score > self.best
        ):
            return False
        self.best = score
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state.get("best")
