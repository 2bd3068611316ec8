"""Recurrent encoders: RNN, LSTM and GRU in one or two directions, and ELMo's pair of stacks.

Shapes: B rows, S positions, T valid positions, D width, I width of an input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tencentpretrain.config import PositiveInt, Probability, check
from tencentpretrain.encoders.base import ENCODERS, Encoder, EncoderConfig
from tencentpretrain.encoders.reading import reading_orders, refuse_packed
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.layers.padding import pad, unpad
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import NOTHING, Hidden, Layout, Want


class RecurrentConfig(EncoderConfig):
    """Keys of all recurrent encoders."""

    layers: PositiveInt = 2
    """Number of layers."""
    directions: Literal[1, 2] = 1
    """1 reads from left to right; 2 also from right to left, each with half of the width."""
    separate: bool = False
    """Keep two directions apart in all layers (ELMo) instead of feeding both into the next one."""
    dropout: Probability = 0.1
    """Dropout rate of the output of each layer."""

    @check("directions", "separate")
    def _two_to_separate(self) -> str | None:
        if self.separate and self.directions == 1:
            return "separate=true needs encoder.directions=2, but it is 1"
        return None

    def misfit(self, hidden: int) -> str | None:
        if hidden % self.directions:
            return f"encoder.directions=2 needs an even width hidden, but it is {hidden}"
        return None


class RecurrentLayer(nn.Module):
    """One layer of a stack: torch's own module for each direction, and dropout.

    Args:
        kind: Module of torch.
        inputs: Width I of what each direction reads.
        width: Width of what each direction returns.
        directions: 1 or 2.
        splits_input: Whether each direction reads its own half of the input, not all of it.
        rate: Dropout rate.
    """

    def __init__(
        self,
        kind: Callable[..., nn.RNNBase],
        inputs: int,
        width: int,
        *,
        directions: int,
        splits_input: bool,
        rate: float,
    ) -> None:
        super().__init__()
        self.splits_input = splits_input
        self.directions = nn.ModuleList(
            kind(inputs, width, batch_first=True) for _ in range(directions)
        )
        self.dropout = Dropout(rate)

    def forward(self, states: Tensor, orders: Sequence[Layout]) -> Tensor:
        """Read flat states [T, D] in each of `orders`; the results side by side, [T, D]."""
        count = len(self.directions)
        parts = states.chunk(count, -1) if self.splits_input else (states,) * count
        # Not as packed sequences of torch: those need lengths on the CPU, and so a device to wait
        # for. Padding follows the text in either order instead.
        outputs = [
            unpad(module(pad(part, order))[0], order)
            for module, part, order in zip(self.directions, parts, orders, strict=False)
        ]
        dropped: Tensor = self.dropout(torch.cat(outputs, -1))
        return dropped


class RecurrentEncoder(Encoder):
    """A stack of recurrent layers that start from zero in every row; it skips padding."""

    kind: ClassVar[Callable[..., nn.RNNBase]]
    reads_embedding = True
    Config = RecurrentConfig

    def __init__(self, config: RecurrentConfig, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.hidden // config.directions
        self.layers = nn.ModuleList()
        for number in range(config.layers):
            is_split = config.separate and number > 0
            inputs = sizes.hidden if number else sizes.embedding
            layer = RecurrentLayer(
                self.kind,
                width if is_split else inputs,
                width,
                directions=config.directions,
                splits_input=is_split,
                rate=config.dropout,
            )
            self.layers.append(layer)

    def forward(self, hidden: Tensor, layout: Layout, want: Want = NOTHING) -> Hidden:
        """Encode `hidden` [B, S, E].

        Raises:
            DataError: if rows hold several documents (`layout.documents`).
        """
        refuse_packed(layout)
        orders = reading_orders(layout)
        states = unpad(hidden, layout)
        wanted = [hidden] if 0 in want.layers else []
        for number, layer in enumerate(self.layers, start=1):
            states = layer(states, orders)
            if number in want.layers:
                wanted.append(pad(states, layout))
        return Hidden(pad(states, layout), layout, tuple(wanted))

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)


@ENCODERS.register("rnn")
class RnnEncoder(RecurrentEncoder):
    """Recurrent network with tanh (Elman, 1990)."""

    kind = nn.RNN


@ENCODERS.register("lstm")
class LstmEncoder(RecurrentEncoder):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997); with `separate` as in ELMo.

    Peters et al., 2018, arXiv:1802.05365, section 3.1.
    """

    kind = nn.LSTM


@ENCODERS.register("gru")
class GruEncoder(RecurrentEncoder):
    """Gated recurrent units (Cho et al., 2014, arXiv:1406.1078, section 2.3)."""

    kind = nn.GRU
