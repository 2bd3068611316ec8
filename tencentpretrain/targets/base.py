"""What a model learns: heads with a loss, as sums over supervised units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, PositiveFloat
from tencentpretrain.registry import Registry
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import IGNORE, NOTHING, Batch, ModelOutput, Ratio, TargetOutput, Want


class TargetConfig(ComponentConfig):
    """What all targets have."""

    weight: PositiveFloat = 1.0
    """Factor of this loss in the sum of all losses."""


class Target(nn.Module, ABC):
    """One head and its loss. It reads the labels of its own name in the batch."""

    want: ClassVar[Want] = NOTHING

    def __init__(self, name: str) -> None:
        super().__init__()
        self.label = name

    @abstractmethod
    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        """Losses and metrics as sums and counts; never their quotients."""

    @abstractmethod
    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Scores before the loss, at the supervised units or, without labels, at all of them."""

    def units(self, batch: Batch) -> Tensor:
        """Number [] of supervised units in `batch`: what the loss of a step is divided by."""
        return (batch.labels[self.label].values != IGNORE).sum()


TARGETS: Registry[Target] = Registry("target", "tencentpretrain.targets")


class Targets(nn.Module):
    """All targets of a model, each a submodule under its own name."""

    def __init__(self, configs: Mapping[str, ComponentConfig], sizes: Sizes) -> None:
        super().__init__()
        self.weights = {name: getattr(c, "weight", 1.0) for name, c in configs.items()}
        for name, config in configs.items():
            self.add_module(name, TARGETS.build(config, sizes, name))

    def __getitem__(self, name: str) -> Target:
        target = self.get_submodule(name)
        assert isinstance(target, Target)
        return target

    @property
    def want(self) -> Want:
        """The sum of what the targets ask the encoder for."""
        want = NOTHING
        for name in self.weights:
            want |= self[name].want
        return want

    def units(self, batch: Batch) -> dict[str, Tensor]:
        """Supervised units of each target, as fp32 so that ranks can add them in one call."""
        return {name: self[name].units(batch).float() for name in self.weights}

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        losses: dict[str, Ratio] = {}
        metrics: dict[str, Ratio] = {}
        for name in self.weights:
            output = self[name](out, batch)
            losses |= output.losses
            metrics |= output.metrics
        return TargetOutput(losses, metrics)
