"""Transformer encoder (Vaswani et al., 2017): BERT and its family and, causal, GPT-2 and LLaMA."""

from __future__ import annotations

from torch import Tensor

from tencentpretrain.encoders.base import ENCODERS, Encoder, EncoderConfig
from tencentpretrain.layers.block import TransformerBlock
from tencentpretrain.layers.cache import Cache
from tencentpretrain.layers.stack import StackConfig, TransformerStack
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import NOTHING, Hidden, Layout, Want


@ENCODERS.register("transformer")
class TransformerEncoder(TransformerStack, Encoder):
    """A stack of transformer blocks; it computes on valid positions only."""

    block = TransformerBlock

    class Config(StackConfig, EncoderConfig):
        pass

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__(config, sizes.hidden, patches=sizes.patches)

    def forward(
        self, hidden: Tensor, layout: Layout, want: Want = NOTHING, cache: Cache | None = None
    ) -> Hidden:
        """Encode `hidden` [B, S, D]."""
        return self.run(hidden, layout, want, cache)
