"""What changes a built model before training: adapters, compaction, bottlenecks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig
from tencentpretrain.registry import Registry


class Wrapper(ABC):
    """Edits a model in place, after its weights are loaded and before it is sharded.

    What trains afterwards is what has `requires_grad`.

    Args:
        config: Its keys.
        seed: Of what it draws at random.
    """

    keeps_base: bool = False
    """Whether what does not train stays as `init` gave it. Where all wrappers of a run say so, its
    checkpoints hold the rest only, and a reference to the checkpoint that `init` named."""

    def __init__(self, config: ComponentConfig, seed: int = 0) -> None:
        self.config = config
        self.seed = seed
        self.key = f"wrappers.{config.name}"

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Swap or add modules and decide which parameters train."""

    def fold(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of a model without this wrapper that computes the same.

        Args:
            tensors: Weights of a model with it, by name.
        """
        return tensors


WRAPPERS: Registry[Wrapper] = Registry("wrapper", "tencentpretrain.wrappers")


def build_wrappers(configs: Mapping[str, ComponentConfig], seed: int = 0) -> list[Wrapper]:
    """The wrappers of a run, in the order in which they are applied."""
    wrappers = []
    for name, config in configs.items():
        wrapper = WRAPPERS.build(config, seed)
        wrapper.key = f"wrappers.{name}"
        wrappers.append(wrapper)
    return wrappers


def apply_wrappers(
    configs: Mapping[str, ComponentConfig], model: nn.Module, seed: int = 0
) -> list[Wrapper]:
    """Apply the wrappers of a run to `model`, one after another; returns them.

    Raises:
        ConfigError: if one of them does not fit the model.
    """
    wrappers = build_wrappers(configs, seed)
    for wrapper in wrappers:
        wrapper.apply(model)
    return wrappers
