"""What happens beside training: eight moments, all of which do nothing by default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tencentpretrain.config import ComponentConfig
from tencentpretrain.registry import Registry
from tencentpretrain.types import Batch

if TYPE_CHECKING:
    from tencentpretrain.train.trainer import Trainer


class Callback:
    """Something that can be removed without changing the loss, unless it says otherwise."""

    key: str = ""
    """Name of its state in a checkpoint; that of the class where empty."""
    order: int = 50
    """Callbacks run in this order at each moment; logging is 10, evaluation 20, saving 90."""

    def fit_start(self, trainer: Trainer) -> None:
        """Training is about to go on from `trainer.step`; again after a rollback."""

    def step_start(self, trainer: Trainer) -> None:
        """The batches of a step are there."""

    def after_backward(
        self, trainer: Trainer, batch: Batch, units: dict[str, Tensor], is_last: bool
    ) -> None:
        """Gradients of one micro-batch were added; `is_last` says it was the step's last one."""

    def before_optimizer_step(self, trainer: Trainer) -> None:
        """Gradients of the whole step are there and not clipped yet."""

    def step_end(self, trainer: Trainer) -> None:
        """A step is done; `trainer.record` holds metrics where logging is due."""

    def evaluated(self, trainer: Trainer, results: dict[str, float]) -> None:
        """An evaluation at `trainer.step` gave `results`."""

    def checkpoint_saved(self, trainer: Trainer, path: Path) -> None:
        """A checkpoint is complete at `path`."""

    def fit_end(self, trainer: Trainer) -> None:
        """Training ends: the run is finished, or was asked to stop (`trainer.stop_reason`)."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values that must survive a restart."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class ConfiguredCallback(Callback):
    """A callback that `callbacks.<name>` adds to a run."""

    class Config(ComponentConfig):
        pass

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config


CALLBACKS: Registry[ConfiguredCallback] = Registry("callback", "tencentpretrain.train.callbacks")
