"""Transformer encoder (Vaswani et al., 2017): BERT, RoBERTa, ALBERT, XLM-R and, causal, GPT-2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tencentpretrain.config import PositiveFloat, PositiveInt, Probability
from tencentpretrain.encoders.base import ENCODERS, Encoder, EncoderConfig
from tencentpretrain.layers.activation import ActivationName
from tencentpretrain.layers.block import NormOrder, TransformerBlock
from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.mask import MaskName, build_mask
from tencentpretrain.layers.norm import NormName, build_norm
from tencentpretrain.layers.padding import pad, unpad
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import NOTHING, Hidden, Layout, Want


@ENCODERS.register("transformer")
class TransformerEncoder(Encoder):
    """A stack of transformer blocks; it computes on valid positions only."""

    class Config(EncoderConfig):
        layers: PositiveInt = 12
        """Number of blocks."""
        heads: PositiveInt = 12
        """Number of attention heads; must divide the width of the model."""
        ffn: PositiveInt | None = None
        """Width inside the feed-forward layers; null is four times the width of the model."""
        activation: ActivationName = "gelu"
        """Activation of the feed-forward layers."""
        norm: NormName = "layer"
        """Kind of norm: layer or rms."""
        norm_eps: PositiveFloat = 1e-12
        """Added to the variance in the norms."""
        norm_order: NormOrder = "post"
        """Whether a norm follows the residual sum (post) or precedes each half of a block (pre)."""
        mask: MaskName = "full"
        """What a position sees: everything (full), itself and the past (causal), or prefix."""
        dropout: Probability = 0.1
        """Dropout rate of the two updates of each block."""
        attention_dropout: Probability | None = None
        """Dropout rate of the attention probabilities; null is the same as dropout."""
        share_blocks: bool = False
        """Apply one block `layers` times (ALBERT) instead of `layers` different ones."""
        bias: bool = True
        """Whether the linear layers have biases."""

        def misfit(self, hidden: int) -> str | None:
            if hidden % self.heads:
                return f"encoder.heads must divide the width hidden={hidden}, but is {self.heads}"
            return None

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        attention_dropout = config.attention_dropout
        self.config = config
        self.hidden = sizes.hidden
        self.layers = nn.ModuleList(
            TransformerBlock(
                sizes.hidden,
                config.heads,
                config.ffn or 4 * sizes.hidden,
                activation=config.activation,
                norm=config.norm,
                norm_eps=config.norm_eps,
                norm_order=config.norm_order,
                dropout=config.dropout,
                attention_dropout=config.dropout
                if attention_dropout is None
                else attention_dropout,
                has_bias=config.bias,
            )
            for _ in range(1 if config.share_blocks else config.layers)
        )
        final = config.norm if config.norm_order == "pre" else "none"
        self.norm = build_norm(final, sizes.hidden, config.norm_eps)

    def forward(self, hidden: Tensor, layout: Layout, want: Want = NOTHING) -> Hidden:
        """Encode `hidden` [B, S, D]."""
        mask = build_mask(self.config.mask, layout)
        grid = HeadGrid(layout, self.config.heads)
        states = unpad(hidden, layout)
        wanted = [hidden] if 0 in want.layers else []
        attentions = []
        for number, block in enumerate(self.blocks(), start=1):
            states, probabilities = block(states, grid, mask, number in want.attentions)
            if number in want.layers:
                wanted.append(pad(states, layout))
            if probabilities is not None:
                attentions.append(probabilities)
        return Hidden(pad(self.norm(states), layout), layout, tuple(wanted), tuple(attentions))

    def blocks(self) -> Sequence[nn.Module]:
        if self.config.share_blocks:
            return [self.layers[0]] * self.config.layers
        return list(self.layers)

    def residual_outputs(self) -> Sequence[nn.Linear]:
        blocks = [block for block in self.blocks() if isinstance(block, TransformerBlock)]
        return [linear for block in blocks for linear in block.residual_outputs()]

    def flops(self, length: int) -> int:
        weights = sum(p.numel() for block in self.blocks() for p in block.parameters())
        return 2 * weights + 4 * length * self.hidden * self.config.layers
