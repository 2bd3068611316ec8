"""How many processes share a run: the one place that training asks about other ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, ConfigError, check
from tencentpretrain.distributed.blocks import BlockOptions
from tencentpretrain.distributed.clip import clip_gradients
from tencentpretrain.distributed.processes import ALONE, Circle, Place
from tencentpretrain.registry import Registry

if TYPE_CHECKING:
    from tencentpretrain.model import Model

Fill = Callable[[nn.Module, Callable[[], None]], None]
"""Calls a function that fills the own parameters of a module, all of them."""


def fill_whole(module: nn.Module, function: Callable[[], None]) -> None:
    """Fill parameters that are whole on this process."""
    function()


class Parallel(ABC):
    """What a training loop needs to know of the other processes, and how it reaches them.

    `rank` and `world` are those of data: processes that compute one batch together have one rank.
    """

    class Config(ComponentConfig):
        pass

    rank: int = 0
    world: int = 1
    is_main: bool = True
    """Whether this process writes what is written once: config, metrics, messages."""
    is_sharded: ClassVar[bool] = False
    """Whether `shape` cuts parameters, so that a model should have no values before."""
    gathers: bool = False
    """Whether a forward pass needs other ranks of data, which must then do the same."""
    circle: Circle
    """All processes of the run, on the host."""
    saving_circle: Circle
    """The same, for what saves, maybe in a thread of its own."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of this process."""

    def home(self, tensor: Tensor) -> torch.device:
        """Where a parameter or buffer of the model lies between the passes that need it."""
        return self.device

    def begin(self, phase: str, is_training: bool = False) -> None:  # noqa: B027  # none waits
        """Go on to `phase` when all processes are through with what was before.

        Args:
            phase: What comes next, for messages.
            is_training: Whether it ends the time in which errors are told by the first process.

        Raises:
            RemoteError: if another process has failed.
        """

    @abstractmethod
    def misfits(self, model: Model) -> list[str]:
        """What of `model` these processes cannot share, and what to do about it."""

    @abstractmethod
    def shape(self, model: Model, blocks: BlockOptions) -> None:
        """Distribute the parameters of `model` in place, with or without values.

        Args:
            model: Whole on every process.
            blocks: How its blocks compute.
        """

    def fill(self, module: nn.Module, function: Callable[[], None]) -> None:
        """Call `function`, which fills the own parameters of `module` as if they were whole."""
        fill_whole(module, function)

    @abstractmethod
    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add small tensors over the ranks of data."""

    def sync(self, model: nn.Module, is_last: bool) -> None:  # noqa: B027  # alone there is none
        """Say before a backward pass whether it is the last one of the step."""

    def clip(
        self, parameters: Iterable[nn.Parameter], limit: float, is_finite: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Clip gradients by the norm of all; returns that norm [] and whether all is finite [].

        Args:
            parameters: Of the model.
            limit: Greatest norm.
            is_finite: [] whether all else on this process is.
        """
        norm = clip_gradients(parameters, limit)
        return norm, is_finite & torch.isfinite(norm)

    def is_keeper(self, tensor: Tensor) -> bool:
        """Whether this process, of all that have this part of `tensor`, is the one to save it."""
        return True

    def stop(self, reason: str | None) -> str | None:
        """What has asked any process to stop, at the latest a step after it did, on all alike."""
        return reason

    def close(self) -> None:  # noqa: B027  # alone there is nobody
        """Take leave of the others, when all is done."""


PARALLELS: Registry[Parallel] = Registry("parallel strategy", "tencentpretrain.distributed")


@PARALLELS.register("none")
class SingleProcess(Parallel):
    """One process: the first GPU where there is one, else the CPU."""

    class Config(ComponentConfig):
        device: str | None = None
        """Device name such as cpu or cuda:1; null takes the GPU where there is one."""

        @check("device")
        def _device_is_there(self) -> str | None:
            try:
                device = torch.device(self.device or "cpu")
            except RuntimeError:
                return f"device must be a name such as cpu or cuda:1, but is `{self.device}`"
            if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
                return f"device `{self.device}` is not there: torch finds no such GPU"
            return None

    def __init__(self, config: Config) -> None:
        place = Place.find()
        if place.world > 1:
            raise ConfigError.at(
                "parallel",
                f"is none, but torchrun has started {place.world} processes, which would all do "
                "the same; give parallel=ddp, fsdp, hsdp, tp or fsdp_tp, or start one process",
            )
        name = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._device = torch.device(name)
        self.circle = self.saving_circle = ALONE

    @property
    def device(self) -> torch.device:
        return self._device

    def misfits(self, model: Model) -> list[str]:
        return []

    def shape(self, model: Model, blocks: BlockOptions) -> None:
        blocks.apply(model)

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors


def summed(values: Mapping[str, float], parallel: Parallel) -> dict[str, float]:
    """Host numbers added over the ranks of data."""
    if parallel.world == 1:
        return dict(values)
    device = parallel.device
    tensors = {k: torch.tensor(v, dtype=torch.float64, device=device) for k, v in values.items()}
    return {name: total.item() for name, total in parallel.sum(tensors).items()}
