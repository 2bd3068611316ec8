"""How many processes share a run: the one place that training asks about other ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, check
from tencentpretrain.registry import Registry


class Parallel(ABC):
    """What a training loop needs to know of the other processes, and how it reaches them."""

    class Config(ComponentConfig):
        pass

    rank: int = 0
    world: int = 1

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of this process."""

    @abstractmethod
    def prepare(self, model: nn.Module) -> nn.Module:
        """Distribute `model`; called once, before its optimiser is made."""

    @abstractmethod
    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add small tensors over all ranks."""


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
        name = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._device = torch.device(name)

    @property
    def device(self) -> torch.device:
        return self._device

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors
