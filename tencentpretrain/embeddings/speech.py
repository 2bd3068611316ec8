"""The part that embeds frames of speech: strided convolutions that make rows shorter."""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, PositiveInt, check
from tencentpretrain.embeddings.base import PARTS, EmbeddingPart
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import Layout, Stream

FRAMES: Final = "frames"
"""Name of the input that is read."""


@PARTS.register("frames")
class FramesEmbedding(EmbeddingPart):
    """Embeds the stream's "frames" [B, T, F] into [B, S, E], S about T over all strides.

    Convolutions with gated linear units (S2T; Wang et al., 2020, arXiv:2010.05171, section 3.1) or
    GELU (Whisper; Radford et al., 2022, section 2.2). What lies behind the end of a row is silence
    before each of them, so that padding changes no real position.
    """

    has_content = True

    class Config(ComponentConfig):
        bands: PositiveInt = 80
        """Values of a frame."""
        kernels: list[PositiveInt] = [5, 5]
        """Widths of the convolutions, in positions; odd."""
        strides: list[PositiveInt] = [2, 2]
        """Steps of the convolutions, in positions."""
        channels: PositiveInt | None = None
        """Outputs of all convolutions but the last, before a gate halves them; null is as many as
        the last has."""
        activation: Literal["glu", "gelu"] = "glu"
        """What follows each convolution: a gated linear unit, or GELU."""
        scale: bool = False
        """Whether to multiply by the root of the width, so that positions do not drown frames."""

        @check("kernels", "strides")
        def _as_many_strides(self) -> str | None:
            if self.kernels and len(self.kernels) == len(self.strides):
                return None
            return f"strides must be as many as kernels={self.kernels}, but are {self.strides}"

        @check("kernels")
        def _kernels_are_odd(self) -> str | None:
            even = [kernel for kernel in self.kernels if kernel % 2 == 0]
            return f"kernels must be odd, but one is {even[0]}" if even else None

        @check("channels", "activation")
        def _channels_are_halved(self) -> str | None:
            if self.channels is None or self.activation != "glu" or self.channels % 2 == 0:
                return None
            return f"channels must be even for activation=glu, but are {self.channels}"

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        gates = 2 if config.activation == "glu" else 1
        last = sizes.embedding * gates
        inner = config.channels or last
        outputs = [inner] * (len(config.kernels) - 1) + [last]
        inputs = [config.bands] + [inner // gates] * (len(config.kernels) - 1)
        # They start as torch does it (Kaiming et al., 2015), as in what is published.
        self.layers = nn.ModuleList(
            nn.Conv1d(source, width, kernel, stride, kernel // 2)
            for source, width, kernel, stride in zip(
                inputs, outputs, config.kernels, config.strides, strict=True
            )
        )
        self.strides = tuple(config.strides)
        self.is_gated = config.activation == "glu"
        self.factor = math.sqrt(sizes.embedding) if config.scale else 1.0

    def layout(self, stream: Stream) -> Layout:
        """Position i stands for the frames around the one at i times all strides."""
        return shortened(stream.layout, math.prod(self.strides))

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        frames = stream.inputs[FRAMES]
        valid = None if stream.layout.is_full else stream.layout.valid[:, None]
        states = frames.transpose(1, 2)
        for convolution, stride in zip(self.layers, self.strides, strict=True):
            if valid is not None:
                states = states * valid
                valid = valid[..., ::stride]
            states = convolution(states)
            states = F.glu(states, 1) if self.is_gated else F.gelu(states)
        states = states.transpose(1, 2)
        return states if self.factor == 1.0 else states * self.factor


def shortened(layout: Layout, step: int) -> Layout:
    """Every `step`-th position of `layout`, whose rows begin at the first one.

    Where the lengths are not known on the host, the device is asked.
    """
    valid = layout.valid[:, ::step]
    if layout.is_full:
        return Layout(valid)
    if layout.lengths is None:
        return Layout.of(valid)
    lengths = tuple(-(-length // step) for length in layout.lengths)
    width = valid.shape[1]
    if min(lengths) == width:
        return Layout(valid, lengths=lengths)
    places = [torch.arange(length) + row * width for row, length in enumerate(lengths)]
    return Layout(valid, torch.cat(places).to(valid.device, non_blocking=True), lengths=lengths)
