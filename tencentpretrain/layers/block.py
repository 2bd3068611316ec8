"""One transformer layer, before or after its norms."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tencentpretrain.layers.activation import ActivationName
from tencentpretrain.layers.attention import SelfAttention
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.layers.feed_forward import FeedForward
from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.mask import AttentionMask
from tencentpretrain.layers.norm import NormName, build_norm

NormOrder = Literal["post", "pre"]


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward, each with dropout, residual connection and norm.

    "post" normalises after adding (Vaswani et al., 2017), "pre" the input of each half
    (Xiong et al., 2020).
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        ffn: int,
        *,
        activation: ActivationName,
        norm: NormName,
        norm_eps: float,
        norm_order: NormOrder,
        dropout: float,
        attention_dropout: float,
        has_bias: bool,
    ) -> None:
        super().__init__()
        self.is_pre = norm_order == "pre"
        self.attention = SelfAttention(hidden, heads, rate=attention_dropout, has_bias=has_bias)
        self.attention_norm = build_norm(norm, hidden, norm_eps)
        self.feed_forward = FeedForward(hidden, ffn, activation, has_bias=has_bias)
        self.feed_forward_norm = build_norm(norm, hidden, norm_eps)
        self.dropout = Dropout(dropout)

    def forward(
        self, states: Tensor, grid: HeadGrid, mask: AttentionMask, is_wanted: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Transform flat states [T, D]; also the attention probabilities where `is_wanted`."""
        inputs = self.attention_norm(states) if self.is_pre else states
        update, probabilities = self.attention(inputs, grid, mask, is_wanted)
        states = states + self.dropout(update)
        if not self.is_pre:
            states = self.attention_norm(states)
        inputs = self.feed_forward_norm(states) if self.is_pre else states
        states = states + self.dropout(self.feed_forward(inputs))
        return (states if self.is_pre else self.feed_forward_norm(states)), probabilities

    def residual_outputs(self) -> tuple[nn.Linear, ...]:
        """Layers that write into the residual stream; deep pre-norm models start them smaller."""
        return self.attention.output, self.feed_forward.down
