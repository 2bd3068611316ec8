"""No encoder, for models whose embedding has read everything already (autoencoders of images)."""

from __future__ import annotations

from torch import Tensor

from tencentpretrain.encoders.base import ENCODERS, Encoder, EncoderConfig
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import NOTHING, Hidden, Layout, Want


@ENCODERS.register("none")
class NoEncoder(Encoder):
    """Hands on the states of the embedding."""

    class Config(EncoderConfig):
        pass

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()

    def forward(self, hidden: Tensor, layout: Layout, want: Want = NOTHING) -> Hidden:
        """`hidden` [B, S, D] with zeros at padding."""
        layers = (hidden,) if 0 in want.layers else ()
        if not layout.is_full:
            hidden = hidden.masked_fill(~layout.valid[..., None], 0.0)
        return Hidden(hidden, layout, layers)
