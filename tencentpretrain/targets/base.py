"""What a model learns: heads with a loss, as sums over supervised units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, PositiveFloat
from tencentpretrain.registry import Registry
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import (
    IGNORE,
    NOTHING,
    Batch,
    Hidden,
    ModelOutput,
    Ratio,
    Stream,
    TargetOutput,
    Want,
)

if TYPE_CHECKING:
    from tencentpretrain.targets.companion import Companion, Setting


class TargetConfig(ComponentConfig):
    """What all targets have."""

    weight: PositiveFloat = 1.0
    """Factor of this loss in the sum of all losses."""

    def misfit(self, width: Callable[[str], int], *, is_alone: bool) -> str | None:
        """What is wrong with this target in a model that encodes a stream in `width` of its name.

        Args:
            width: From the name of a stream to the width of its states.
            is_alone: Whether the model has no other target.
        """
        return None


class Target(nn.Module, ABC):
    """One head and its loss. It reads the labels of its own name in the batch."""

    want: Want = NOTHING
    """What encoder and decoder are asked to return beside their last states."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.label = name

    @abstractmethod
    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        """Losses and metrics as sums and counts; never their quotients."""

    @abstractmethod
    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Scores before the loss, at the supervised units or, without labels, at all of them."""

    def read(self, name: str, stream: Stream, encode: Callable[[Stream], Hidden]) -> Hidden:
        """What `encode` makes of the stream `name`, or as much of it as the target reads.

        Only a target that is alone is asked.
        """
        return encode(stream)

    def units(self, batch: Batch) -> Tensor:
        """Number [] of supervised units in `batch`: what the loss of a step is divided by."""
        return (batch.labels[self.label].values != IGNORE).sum()

    def further(self) -> dict[str, float]:
        """Losses beside the one of its own name: their names, and factors beside that one."""
        return {}

    def further_units(self, batch: Batch) -> dict[str, Tensor]:
        """Number [] of units in `batch` that each of the `further` losses is over."""
        return {}

    def companion(self, setting: Setting) -> Companion | None:
        """What must accompany the target while it trains and is no part of the model.

        Raises:
            UserError: if that cannot be had, or does not fit.
        """
        return None


TARGETS: Registry[Target] = Registry("target", "tencentpretrain.targets")


def losses_by_source(
    losses: Mapping[str, Ratio], out: ModelOutput, batch: Batch
) -> dict[str, TargetOutput]:
    """`losses` of the rows from each source by its name, without a gradient.

    Nothing where all rows are from one source, or where a loss is not one of single units, such as
    that of a pair among all pairs of a batch.
    """
    origin = batch.origin
    known = {name: ratio.each for name, ratio in losses.items() if ratio.each is not None}
    if origin is None or len(known) < len(losses):
        return {}
    parts = {source: TargetOutput({}, {}) for source in origin.names}
    every = torch.arange(len(origin.names), device=origin.numbers.device)
    for name, each in known.items():
        labels = batch.labels[name]
        sources = origin.numbers[labels.rows(len(origin.numbers), out.hidden.states.shape[1])]
        # Not index_add_, which adds in any order on GPUs, nor a matrix product, which rounds.
        chosen = sources == every[:, None]
        totals, counts = each.where(chosen, 0.0).sum(1), (chosen & labels.supervised).sum(1)
        for source, total, count in zip(origin.names, totals, counts, strict=True):
            parts[source].losses[name] = Ratio(total, count)
    return parts


class Targets(nn.Module):
    """All targets of a model, each a submodule under its own name."""

    def __init__(self, configs: Mapping[str, ComponentConfig], sizes: Sizes) -> None:
        super().__init__()
        self.names = tuple(configs)
        self.weights: dict[str, float] = {}
        """Factors of all losses by name."""
        for name, config in configs.items():
            target = TARGETS.build(config, sizes, name)
            self.add_module(name, target)
            self.weights[name] = weight = getattr(config, "weight", 1.0)
            self.weights |= {loss: weight * part for loss, part in target.further().items()}

    def __getitem__(self, name: str) -> Target:
        target = self.get_submodule(name)
        assert isinstance(target, Target)
        return target

    @property
    def want(self) -> Want:
        """The sum of what the targets ask the encoder for."""
        want = NOTHING
        for name in self.names:
            want |= self[name].want
        return want

    def read(self, name: str, stream: Stream, encode: Callable[[Stream], Hidden]) -> Hidden:
        """What `encode` makes of the stream `name`, as far as the targets read it."""
        if len(self.names) != 1:
            return encode(stream)
        return self[self.names[0]].read(name, stream, encode)

    def units(self, batch: Batch) -> dict[str, Tensor]:
        """Units of each loss, as fp32 so that ranks can add them in one call."""
        units: dict[str, Tensor] = {}
        for name in self.names:
            units |= {name: self[name].units(batch), **self[name].further_units(batch)}
        return {name: count.float() for name, count in units.items()}

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        losses: dict[str, Ratio] = {}
        metrics: dict[str, Ratio] = {}
        for name in self.names:
            output = self[name](out, batch)
            losses |= output.losses
            metrics |= output.metrics
        return TargetOutput(losses, metrics, losses_by_source(losses, out, batch))
