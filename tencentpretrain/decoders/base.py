"""What every decoder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig
from tencentpretrain.layers.cache import Cache
from tencentpretrain.registry import Registry
from tencentpretrain.types import NOTHING, Hidden, Layout, Want


class DecoderConfig(ComponentConfig):
    """What all decoders have."""

    def misfit(self, hidden: int) -> str | None:
        """What is wrong with this decoder in a model whose target side is `hidden` wide."""
        return None


class Decoder(nn.Module, ABC):
    """Maps states of a target sequence, reading the encoder's output beside."""

    @abstractmethod
    def forward(
        self, hidden: Tensor, layout: Layout, memory: Hidden, want: Want = NOTHING
    ) -> Hidden:
        """Decode `hidden` [B, S_tgt, D] given `memory` [B, S_src, D_src], what an encoder said."""

    def make_cache(self, capacity: int) -> Cache | None:
        """As that of an encoder; it is the fifth argument of `forward`."""
        return None

    def flops(self, length: int) -> int:
        """Multiply-adds, counted as 2, of a forward pass over one position of a row of `length`."""
        return 2 * sum(p.numel() for p in self.parameters())

    def blocks(self) -> Sequence[nn.Module]:
        """Layers in order, the units that are compiled, checkpointed and sharded."""
        return ()

    def residual_outputs(self) -> Sequence[nn.Linear]:
        """Linear layers whose outputs are added to a residual stream, for scaled initialisation."""
        return ()


DECODERS: Registry[Decoder] = Registry("decoder", "tencentpretrain.decoders")
