"""What every encoder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig
from tencentpretrain.layers.cache import Cache
from tencentpretrain.registry import Registry
from tencentpretrain.types import NOTHING, Hidden, Layout, Want


class EncoderConfig(ComponentConfig):
    """What all encoders have."""

    def misfit(self, hidden: int) -> str | None:
        """What is wrong with this encoder in a model of width `hidden`."""
        return None


class Encoder(nn.Module, ABC):
    """Maps states of a sequence to states of the same shape, each knowing the others."""

    reads_embedding: ClassVar[bool] = False
    """Whether it takes states of the embedding's own width E, where that is not D."""

    @abstractmethod
    def forward(self, hidden: Tensor, layout: Layout, want: Want = NOTHING) -> Hidden:
        """Encode `hidden` [B, S, D]; positions that `layout` marks as padding come out as zeros."""

    def make_cache(self, capacity: int) -> Cache | None:
        """What is kept of rows of up to `capacity` positions while they grow; None if nothing.

        An encoder that returns one takes it as a fourth argument of `forward`; then `hidden` is
        what follows on the positions that the cache has read.
        """
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """Layers in order, the units that are compiled, checkpointed and sharded."""
        return ()

    def residual_outputs(self) -> Sequence[nn.Linear]:
        """Linear layers whose outputs are added to a residual stream, for scaled initialisation."""
        return ()

    def flops(self, length: int) -> int:
        """Multiply-adds, counted as 2, of a forward pass over one position of a row of `length`."""
        return 2 * sum(p.numel() for p in self.parameters())


ENCODERS: Registry[Encoder] = Registry("encoder", "tencentpretrain.encoders")
