"""Keys that every training run has."""

from __future__ import annotations

from typing import Annotated, Literal

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    NonNegativeInt,
    PathLike,
    PositiveInt,
    SerializeAsAny,
    check,
)
from tencentpretrain.distributed.parallel import PARALLELS
from tencentpretrain.train.callbacks.base import CALLBACKS
from tencentpretrain.train.callbacks.saving import CheckpointConfig
from tencentpretrain.train.layers import Stack
from tencentpretrain.train.optim import OPTIMIZERS
from tencentpretrain.train.schedule import SCHEDULES
from tencentpretrain.train.trainer_config import TrainerConfig
from tencentpretrain.wrappers.base import WRAPPERS


class RunConfig(Config):
    """Keys of every training run."""

    run_dir: PathLike
    """Directory of the run: config, metrics, checkpoints; the same command continues it."""
    init: str = "none"
    """Run directory or checkpoint whose weights to start from; none draws them at random."""
    init_layers: dict[Stack, list[PositiveInt]] = {}
    """Layers of `init` that those of the model start from, in order and counted from 1, such as
    {encoder: [1, 3, 5]} for a model of three; empty takes them one by one."""
    allow_missing: list[str] = []
    """Patterns of parameter names that `init` may lack; they start at random."""
    allow_unexpected: list[str] = []
    """Patterns of names in `init` that the model may lack; they are left out."""
    allow_mismatched: list[str] = []
    """Patterns of parameter names that may have another shape in `init`; they start at random."""
    allow_other_tokenizer: bool = False
    """Whether `init` may come from a run with another tokenizer, whose ids mean other tokens."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Continue the run in run_dir: auto if it exists, never (refuse), or must (it has to exist)."""
    seed: NonNegativeInt = 0
    """Decides initial weights, order and content of the examples, and dropout."""
    dry_run: bool = False
    """Build everything, take one step, save and read it back elsewhere, and tell what it costs."""
    plugins: list[str] = []
    """Packages to import that register components of your own."""
    trainer: TrainerConfig = TrainerConfig()
    """Length, batches, precision and rhythm of training."""
    optim: Annotated[SerializeAsAny[ComponentConfig], Choice(OPTIMIZERS, "adamw")] = (
        OPTIMIZERS.default("adamw")
    )
    """Optimiser."""
    schedule: Annotated[SerializeAsAny[ComponentConfig], Choice(SCHEDULES, "linear")] = (
        SCHEDULES.default("linear")
    )
    """Learning rate over the run."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved and what is kept."""
    parallel: Annotated[SerializeAsAny[ComponentConfig], Choice(PARALLELS, "none")] = (
        PARALLELS.default("none")
    )
    """How many processes share the run."""
    wrappers: dict[str, Annotated[SerializeAsAny[ComponentConfig], Choice(WRAPPERS)]] = {}
    """Changes to the built model, by name."""
    callbacks: dict[str, Annotated[SerializeAsAny[ComponentConfig], Choice(CALLBACKS)]] = {}
    """Callbacks to add, by name."""

    @check("schedule", "trainer")
    def _warmup_fits(self) -> str | None:
        warmup = getattr(self.schedule, "warmup_steps", None)
        if warmup is None or self.trainer.steps is None or warmup <= self.trainer.steps:
            return None
        return (
            f"schedule.warmup_steps must be at most trainer.steps={self.trainer.steps}, "
            f"but is {warmup}"
        )
