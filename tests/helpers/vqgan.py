"""Random weights in the layout of taming-transformers, and what a VQModel computes of them.

Written from the published description alone, with torch's functions over plain names, so that it
shares nothing with the nets that it is compared with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS, MULTIPLIERS, BLOCKS = 32, (1, 2), 2
CELLS, SIZE, CODES = 48, 12, 20
ATTENTION = 1
Weights = dict[str, Tensor]


def random_weights(seed: int = 0) -> Weights:
    """Weights of a small VQModel with attention at its last level."""
    draw = torch.Generator().manual_seed(seed)
    weights: Weights = {}

    def add(name: str, *shape: int) -> None:
        fan = max(1, torch.tensor(shape[1:]).prod().item())
        weights[f"{name}.weight"] = torch.randn(shape, generator=draw) * fan**-0.5
        weights[f"{name}.bias"] = torch.randn(shape[0], generator=draw) * 0.1

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=draw)
        weights[f"{name}.bias"] = 0.1 * torch.randn(width, generator=draw)

    def block(name: str, width: int, out: int) -> None:
        norm(f"{name}.norm1", width)
        add(f"{name}.conv1", out, width, 3, 3)
        norm(f"{name}.norm2", out)
        add(f"{name}.conv2", out, out, 3, 3)
        if width != out:
            add(f"{name}.nin_shortcut", out, width, 1, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            add(f"{name}.{part}", width, width, 1, 1)

    def middle(name: str, width: int) -> None:
        block(f"{name}.block_1", width, width)
        attention(f"{name}.attn_1", width)
        block(f"{name}.block_2", width, width)

    widths = [CHANNELS * m for m in MULTIPLIERS]
    add("encoder.conv_in", CHANNELS, 3, 3, 3)
    width = CHANNELS
    for level, out in enumerate(widths):
        for number in range(BLOCKS):
            block(f"encoder.down.{level}.block.{number}", width, out)
            width = out
            if level == ATTENTION:
                attention(f"encoder.down.{level}.attn.{number}", out)
        if level < len(widths) - 1:
            add(f"encoder.down.{level}.downsample.conv", out, out, 3, 3)
    middle("encoder.mid", width)
    norm("encoder.norm_out", width)
    add("encoder.conv_out", CELLS, width, 3, 3)
    add("decoder.conv_in", width, CELLS, 3, 3)
    middle("decoder.mid", width)
    for level in reversed(range(len(widths))):
        for number in range(BLOCKS + 1):
            block(f"decoder.up.{level}.block.{number}", width, widths[level])
            width = widths[level]
            if level == ATTENTION:
                attention(f"decoder.up.{level}.attn.{number}", width)
        if level:
            add(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    norm("decoder.norm_out", width)
    add("decoder.conv_out", 3, width, 3, 3)
    add("quant_conv", SIZE, CELLS, 1, 1)
    add("post_quant_conv", CELLS, SIZE, 1, 1)
    weights["quantize.embedding.weight"] = torch.randn(CODES, SIZE, generator=draw)
    return weights


class Reference:
    """What a VQModel with these weights computes.

    Args:
        weights: By their published names.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def _conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        weights = self.weights
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weights = self.weights
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def _block(self, name: str, x: Tensor) -> Tensor:
        swish = torch.sigmoid
        h = self._norm(f"{name}.norm1", x)
        h = self._conv(f"{name}.conv1", h * swish(h), padding=1)
        h = self._norm(f"{name}.norm2", h)
        h = self._conv(f"{name}.conv2", h * swish(h), padding=1)
        if f"{name}.nin_shortcut.weight" in self.weights:
            x = self._conv(f"{name}.nin_shortcut", x)
        return x + h

    def _attention(self, name: str, x: Tensor) -> Tensor:
        rows, width = x.shape[:2]
        h = self._norm(f"{name}.norm", x)
        q, k, v = (self._conv(f"{name}.{part}", h).reshape(rows, width, -1) for part in "qkv")
        scores = torch.einsum("bci,bcj->bij", q, k) * width**-0.5
        h = torch.einsum("bij,bcj->bci", scores.softmax(2), v).reshape(x.shape)
        return x + self._conv(f"{name}.proj_out", h)

    def _middle(self, name: str, x: Tensor) -> Tensor:
        x = self._attention(f"{name}.attn_1", self._block(f"{name}.block_1", x))
        return self._block(f"{name}.block_2", x)

    def vectors(self, pixels: Tensor) -> Tensor:
        """[B, SIZE, h, w] before codes are taken."""
        x = self._conv("encoder.conv_in", pixels, padding=1)
        for level in range(len(MULTIPLIERS)):
            for number in range(BLOCKS):
                x = self._block(f"encoder.down.{level}.block.{number}", x)
                if level == ATTENTION:
                    x = self._attention(f"encoder.down.{level}.attn.{number}", x)
            if level < len(MULTIPLIERS) - 1:
                x = F.pad(x, (0, 1, 0, 1), mode="constant", value=0)
                x = self._conv(f"encoder.down.{level}.downsample.conv", x, stride=2)
        x = self._norm("encoder.norm_out", self._middle("encoder.mid", x))
        x = self._conv("encoder.conv_out", x * torch.sigmoid(x), padding=1)
        return self._conv("quant_conv", x)

    def codes(self, pixels: Tensor) -> Tensor:
        """[B, h * w] numbers of the nearest codes."""
        vectors = self.vectors(pixels).permute(0, 2, 3, 1).flatten(1, 2)
        table = self.weights["quantize.embedding.weight"]
        return (vectors[:, :, None] - table).square().sum(-1).argmin(-1)

    def decode(self, codes: Tensor, side: int) -> Tensor:
        """Pixels of codes [B, side * side]."""
        chosen = self.weights["quantize.embedding.weight"][codes]
        x = chosen.reshape(len(codes), side, side, -1).permute(0, 3, 1, 2)
        x = self._conv("decoder.conv_in", self._conv("post_quant_conv", x), padding=1)
        x = self._middle("decoder.mid", x)
        for level in reversed(range(len(MULTIPLIERS))):
            for number in range(BLOCKS + 1):
                x = self._block(f"decoder.up.{level}.block.{number}", x)
                if level == ATTENTION:
                    x = self._attention(f"decoder.up.{level}.attn.{number}", x)
            if level:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self._conv(f"decoder.up.{level}.upsample.conv", x, padding=1)
        x = self._norm("decoder.norm_out", x)
        return self._conv("decoder.conv_out", x * torch.sigmoid(x), padding=1)
