"""Transformer decoder (Vaswani et al., 2017): T5, BART, PEGASUS and translation."""

from __future__ import annotations

from torch import Tensor

from tencentpretrain.decoders.base import DECODERS, Decoder, DecoderConfig
from tencentpretrain.layers.attention import View
from tencentpretrain.layers.block import DecoderBlock
from tencentpretrain.layers.cache import Cache
from tencentpretrain.layers.mask import MaskName, memory_mask
from tencentpretrain.layers.stack import StackConfig, TransformerStack
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import NOTHING, Hidden, Layout, Want


@DECODERS.register("transformer")
class TransformerDecoder(TransformerStack, Decoder):
    """A stack of blocks that also attend to what the encoder returned."""

    block = DecoderBlock

    class Config(StackConfig, DecoderConfig):
        mask: MaskName = "causal"
        """What a position sees: itself and the past (causal), everything (full), or prefix."""

        @property
        def part(self) -> str:
            return "decoder"

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__(config, sizes.hidden, sizes.source)

    def forward(
        self,
        hidden: Tensor,
        layout: Layout,
        memory: Hidden,
        want: Want = NOTHING,
        cache: Cache | None = None,
    ) -> Hidden:
        """Decode `hidden` [B, S_tgt, D] given `memory` [B, S_src, D_src]."""
        across = View(
            self.head_grid(layout, self.heads.heads),
            self.head_grid(memory.layout, self.heads.kv_heads),
            memory_mask(memory.layout),
            cache=cache,
        )
        return self.run(hidden, layout, want, cache, memory, across)
