"""What every decoder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from tencentpretrain.registry import Registry
from tencentpretrain.types import NOTHING, Hidden, Layout, Want


class Decoder(nn.Module, ABC):
    """Maps states of a target sequence, reading the encoder's output beside."""

    @abstractmethod
    def forward(
        self, hidden: Tensor, layout: Layout, memory: Hidden, want: Want = NOTHING
    ) -> Hidden:
        """Decode `hidden` [B, S_tgt, D] given `memory` [B, S_src, D]."""

    def blocks(self) -> Sequence[nn.Module]:
        """Layers in order, the units that are compiled, checkpointed and sharded."""
        return ()

    def residual_outputs(self) -> Sequence[nn.Linear]:
        """Linear layers whose outputs are added to a residual stream, for scaled initialisation."""
        return ()


DECODERS: Registry[Decoder] = Registry("decoder", "tencentpretrain.decoders")
