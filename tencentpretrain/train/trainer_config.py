"""Keys of the training loop."""

from __future__ import annotations

from typing import Literal

from tencentpretrain.config import Config, NonNegativeFloat, PositiveInt, check
from tencentpretrain.distributed.blocks import RecomputeName
from tencentpretrain.train.precision import PrecisionName


class TrainerConfig(Config):
    """Length, batches, precision and rhythm of training."""

    steps: PositiveInt | None = None
    """Updates of the weights, the length of the run and of its schedule."""
    epochs: NonNegativeFloat | None = None
    """Length of the run in passes over the examples, instead of steps."""
    stop_after: PositiveInt | None = None
    """End this process after so many steps as if interrupted: saved and ready to go on."""
    batch_size: PositiveInt = 32
    """Examples of one update, over all micro-batches and processes."""
    micro_batch_size: PositiveInt | None = None
    """Examples computed at once; null is the whole batch. The result does not depend on it."""
    precision: PrecisionName = "auto"
    """Type of matrix products: auto (bf16 where the hardware is fast at it), fp32 or bf16."""
    max_norm: NonNegativeFloat = 1.0
    """Norm that gradients are clipped to; 0 turns clipping off."""
    log_every: PositiveInt = 50
    """Steps between two log lines; only then does the host wait for the device."""
    eval_every: PositiveInt | None = None
    """Steps between two evaluations; null evaluates ten times in a run. The end always is."""
    nonfinite: Literal["raise", "skip", "rollback"] = "raise"
    """On a loss or gradient that is not finite: raise, skip the update, or rollback and go on."""

    recompute: RecomputeName = "none"
    """What blocks compute again in the backward pass to save memory: none, selective (all but
    matrix products) or full."""
    recompute_every: PositiveInt = 1
    """One of so many blocks is recomputed."""
    compile: bool = False
    """Whether blocks are compiled: a slow start, then faster steps on GPUs; slower ones on CPUs."""

    @check("steps", "epochs")
    def _one_length(self) -> str | None:
        both = self.steps is not None and self.epochs is not None
        return "give trainer.steps or trainer.epochs, not both" if both else None

    @check("batch_size", "micro_batch_size")
    def _micro_fits(self) -> str | None:
        if (self.micro_batch_size or 0) <= self.batch_size:
            return None
        return f"micro_batch_size must be at most batch_size={self.batch_size}"
