"""Gated convolutional encoder (Dauphin et al., 2017, arXiv:1612.08083).

Shapes: B rows, S positions, D width, I width of an input, K width of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.config import PositiveInt, Probability
from tencentpretrain.encoders.base import ENCODERS, Encoder, EncoderConfig
from tencentpretrain.encoders.reading import refuse_packed
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import NOTHING, Hidden, Layout, Want


class CausalConvolution(nn.Module):
    """Mixes each position with the K - 1 before it; `weight` is [D, I, K], its last tap the own."""

    def __init__(self, inputs: int, width: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, inputs, kernel_size))
        self.bias = nn.Parameter(torch.empty(width))

    def init_weights(self, std: float) -> None:
        """He et al., 2015, whatever `std` is: gates halve the states in every layer."""
        nn.init.kaiming_normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Convolve `states` [B, I, K - 1 + S], which begin with what precedes them: [B, D, S]."""
        return F.conv1d(states, self.weight, self.bias)


class GatedConvolution(nn.Module):
    """One convolution times the sigmoid of another, and dropout (equation 1)."""

    def __init__(self, inputs: int, width: int, kernel_size: int, rate: float) -> None:
        super().__init__()
        self.before = kernel_size - 1
        self.value = CausalConvolution(inputs, width, kernel_size)
        self.gate = CausalConvolution(inputs, width, kernel_size)
        self.dropout = Dropout(rate)

    def forward(self, states: Tensor) -> Tensor:
        """Map [B, I, S] to [B, D, S]; zeros stand before the first position."""
        states = F.pad(states, (self.before, 0))
        gated: Tensor = self.dropout(self.value(states) * torch.sigmoid(self.gate(states)))
        return gated


@ENCODERS.register("gated_cnn")
class GatedCnnEncoder(Encoder):
    """Causal gated convolutions: a first one, then blocks of `block_size` with a residual sum."""

    reads_embedding = True

    class Config(EncoderConfig):
        layers: PositiveInt = 9
        """Number of gated convolutions."""
        kernel_size: PositiveInt = 4
        """Positions that a convolution reads: its own and those before it."""
        block_size: PositiveInt = 2
        """Convolutions between two residual sums; the first one is before all blocks."""
        dropout: Probability = 0.1
        """Dropout rate of the output of each convolution."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.block_size = config.block_size
        self.layers = nn.ModuleList(
            GatedConvolution(
                sizes.hidden if number else sizes.embedding,
                sizes.hidden,
                config.kernel_size,
                config.dropout,
            )
            for number in range(config.layers)
        )

    def forward(self, hidden: Tensor, layout: Layout, want: Want = NOTHING) -> Hidden:
        """Encode `hidden` [B, S, E].

        Raises:
            DataError: if rows hold several documents (`layout.documents`).
        """
        refuse_packed(layout)
        # Padding is kept at zero, which is what stands before the first position of any row.
        padding = None if layout.is_full else ~layout.valid[:, None]
        states = _blank(hidden.transpose(1, 2), padding)
        wanted = [hidden] if 0 in want.layers else []
        shortcut: Tensor | None = None
        for number, layer in enumerate(self.layers):
            states = _blank(layer(states), padding)
            if number % self.block_size == 0:
                states = shortcut = states if shortcut is None else states + shortcut
            if number + 1 in want.layers:
                wanted.append(states.transpose(1, 2))
        return Hidden(states.transpose(1, 2), layout, tuple(wanted))

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)


def _blank(states: Tensor, padding: Tensor | None) -> Tensor:
    """Zero `states` [B, D, S] at `padding` [B, 1, S]."""
    return states if padding is None else states.masked_fill(padding, 0.0)
