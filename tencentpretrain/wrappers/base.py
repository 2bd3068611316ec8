"""What changes a built model before training: adapters, compaction, bottlenecks."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from tencentpretrain.config import ComponentConfig
from tencentpretrain.registry import Registry


class Wrapper(ABC):
    """Edits a model in place, after its weights are loaded and before it is sharded.

    What trains afterwards is what has `requires_grad`.
    """

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Swap or add modules and decide which parameters train."""


WRAPPERS: Registry[Wrapper] = Registry("wrapper", "tencentpretrain.wrappers")
