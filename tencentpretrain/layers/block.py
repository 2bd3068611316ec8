"""Transformer layers, before or after their norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tencentpretrain.layers.activation import ActivationName
from tencentpretrain.layers.attention import (
    Attended,
    CrossAttention,
    HeadShape,
    SelfAttention,
    View,
)
from tencentpretrain.layers.feed_forward import FeedForward, GatedFeedForward
from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.norm import NormName, build_norm
from tencentpretrain.layers.residual import Residual
from tencentpretrain.types import Hidden

NormOrder = Literal["post", "pre"]


@dataclass(frozen=True)
class BlockConfig:
    """What the layers of a stack have in common.

    Args:
        hidden: Width D.
        heads: How the width is split.
        ffn: Width inside the feed-forward layer.
        is_gated: Whether that layer has a gate.
        activation: Its activation.
        norm: Kind of norm.
        norm_eps: Added to the variance in the norms.
        norm_order: Before each half of a block or after its sum.
        dropout: Rate of the updates.
        attention_dropout: Rate of the attention probabilities.
        has_bias: Whether linear layers have biases.
        has_qkv_bias: Whether those of queries, keys and values have.
        has_key_bias: Whether those of keys have; None is as those of queries and values.
        has_head_norm: Whether queries and keys are normalised head by head.
        is_scaled: Whether scores are divided by the root of the width of a head.
        layer_scale: Where given, updates have learned factors that start with this.
        source: Width of the other sequence that a decoder reads.
    """

    hidden: int
    heads: HeadShape
    ffn: int
    is_gated: bool = False
    activation: ActivationName = "gelu"
    norm: NormName = "layer"
    norm_eps: float = 1e-12
    norm_order: NormOrder = "post"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    has_bias: bool = True
    has_qkv_bias: bool = True
    has_key_bias: bool | None = None
    has_head_norm: bool = False
    is_scaled: bool = True
    layer_scale: float | None = None
    source: int | None = None

    def build_norm(self) -> nn.Module:
        """One of the norms of a block."""
        return build_norm(self.norm, self.hidden, self.norm_eps)

    def build_residual(self, depth_rate: float) -> Residual:
        """What adds one of the updates of a block."""
        return Residual(self.hidden, self.dropout, self.layer_scale, depth_rate)

    def attention(self) -> dict[str, Any]:
        """Arguments of an attention layer."""
        return {
            "hidden": self.hidden,
            "shape": self.heads,
            "rate": self.attention_dropout,
            "has_bias": self.has_bias,
            "has_qkv_bias": self.has_qkv_bias,
            "has_key_bias": self.has_key_bias,
            "norm_eps": self.norm_eps if self.has_head_norm else None,
            "is_scaled": self.is_scaled,
        }


class Block(nn.Module):
    """The parts that every block has: self-attention and feed-forward with their norms.

    "post" normalises after adding (Vaswani et al., 2017), "pre" the input of each update
    (Xiong et al., 2020).

    Args:
        config: What it shares with the other blocks.
        has_first_norm: Whether the input of attention is normalised; ModernBERT's first block
            gets it normalised already.
        depth_rate: Probability with which a row goes without an update in training.
    """

    def __init__(
        self, config: BlockConfig, *, has_first_norm: bool = True, depth_rate: float = 0.0
    ) -> None:
        super().__init__()
        feed_forward = GatedFeedForward if config.is_gated else FeedForward
        self.is_pre = config.norm_order == "pre"
        self.attention = SelfAttention(**config.attention())
        self.attention_norm = config.build_norm() if has_first_norm else nn.Identity()
        self.attention_residual = config.build_residual(depth_rate)
        self.feed_forward = feed_forward(
            config.hidden, config.ffn, config.activation, has_bias=config.has_bias
        )
        self.feed_forward_norm = config.build_norm()
        self.feed_forward_residual = config.build_residual(depth_rate)

    def attend(
        self, states: Tensor, view: View, layer: int, is_wanted: bool, scores: Tensor | None
    ) -> Attended:
        """The self-attention of the block, added to `states` [T, D]."""
        inputs = self._before(states, self.attention_norm)
        attended: Attended = self.attention(inputs, view, layer, is_wanted=is_wanted, scores=scores)
        residual, norm = self.attention_residual, self.attention_norm
        after = self._after(states, attended.states, residual, norm, view.queries)
        return attended.of(after)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [T, W] of the self-attention for `states` [T, D]."""
        inputs, attention = self._before(states, self.attention_norm), self.attention
        query, key, value = attention.project(
            inputs, attention.query, attention.key, attention.value
        )
        return query, key, value

    def feed(self, states: Tensor, grid: HeadGrid) -> Tensor:
        """The feed-forward layer of the block, added to `states` [T, D] that lie as in `grid`."""
        residual, norm = self.feed_forward_residual, self.feed_forward_norm
        update = self.feed_forward(self._before(states, norm))
        return self._after(states, update, residual, norm, grid)

    def _before(self, states: Tensor, norm: nn.Module) -> Tensor:
        return norm(states) if self.is_pre else states

    def _after(
        self, states: Tensor, update: Tensor, residual: Residual, norm: nn.Module, grid: HeadGrid
    ) -> Tensor:
        states = residual(states, update, grid)
        return states if self.is_pre else norm(states)

    def residual_outputs(self) -> tuple[nn.Linear, ...]:
        """Layers that write into the residual stream; deep pre-norm models start them smaller."""
        return self.attention.output, self.feed_forward.down


class TransformerBlock(Block):
    """Self-attention, then feed-forward."""

    def forward(
        self,
        states: Tensor,
        view: View,
        layer: int = 0,
        *,
        is_wanted: bool = False,
        scores: Tensor | None = None,
    ) -> Attended:
        """Transform flat states [T, D].

        Args:
            states: The valid positions.
            view: What attention is given.
            layer: Number of the layer in a cache.
            is_wanted: Whether to return the attention probabilities, too.
            scores: Of the previous layer, to be added; then those of this one are returned.
        """
        attended = self.attend(states, view, layer, is_wanted, scores)
        return attended.of(self.feed(attended.states, view.queries))


class DecoderBlock(Block):
    """Self-attention, attention over another sequence, then feed-forward."""

    def __init__(
        self, config: BlockConfig, *, has_first_norm: bool = True, depth_rate: float = 0.0
    ) -> None:
        super().__init__(config, has_first_norm=has_first_norm, depth_rate=depth_rate)
        self.cross = CrossAttention(**config.attention(), source=config.source)
        self.cross_norm = config.build_norm()
        self.cross_residual = config.build_residual(depth_rate)

    def forward(
        self,
        states: Tensor,
        view: View,
        memory: Hidden,
        across: View,
        layer: int = 0,
        *,
        is_wanted: bool = False,
        scores: Tensor | None = None,
    ) -> Attended:
        """As `TransformerBlock.forward`; also attends to `memory` as `across` says."""
        attended = self.attend(states, view, layer, is_wanted, scores)
        inputs = self._before(attended.states, self.cross_norm)
        update = self.cross(inputs, across, memory, layer).states
        residual, norm, grid = self.cross_residual, self.cross_norm, view.queries
        states = self._after(attended.states, update, residual, norm, grid)
        return attended.of(self.feed(states, grid))

    def residual_outputs(self) -> tuple[nn.Linear, ...]:
        return self.attention.output, self.cross.output, self.feed_forward.down
