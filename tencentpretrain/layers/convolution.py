"""Convolutional nets from images to cells and back (Esser et al., 2021, VQGAN, arXiv:2012.09841).

Submodules are called as in the published weights of taming-transformers, so that these can be read.
Shapes: B images, C channels, H and W pixels, h and w cells.
"""

from __future__ import annotations

from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.config import Config, NonNegativeInt, PositiveInt, check

COLOURS: Final = 3
"""Channels of an image."""
NORM_EPS: Final = 1e-6
"""Added to variances, as in the published models."""


class ConvolutionKeys(Config):
    """Size of a net that reads or makes images; level 0 has as many cells as pixels."""

    channels: PositiveInt = 128
    """Channels that multipliers are applied to."""
    multipliers: list[PositiveInt] = [1, 1, 2, 2, 4]
    """Channels of each level, in channels; the levels are one more than the times that each side
    of an image is halved."""
    blocks: PositiveInt = 2
    """Residual blocks of a level that reads; one that makes images has one more."""
    attention: list[NonNegativeInt] = [4]
    """Levels whose blocks are each followed by attention between cells."""
    groups: PositiveInt = 32
    """Groups of channels that are normalised together."""

    @check("multipliers", "attention")
    def _levels(self) -> str | None:
        if not self.multipliers:
            return "multipliers must name at least one level"
        wrong = [level for level in self.attention if level >= len(self.multipliers)]
        if not wrong:
            return None
        return f"attention must name levels below {len(self.multipliers)}, but names {wrong[0]}"

    @check("channels", "multipliers", "groups")
    def _groups_fit(self) -> str | None:
        wrong = [width for width in self.widths if width % self.groups]
        if not wrong:
            return None
        return f"groups={self.groups} must divide the channels of every level, such as {wrong[0]}"

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    @property
    def factor(self) -> int:
        """Pixels of a cell along each side."""
        return int(2 ** (len(self.multipliers) - 1))


class ResidualConvolution(nn.Module):
    """Two convolutions, each behind a norm and an activation, around which the input is added."""

    def __init__(self, width: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width, NORM_EPS)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, NORM_EPS)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, states: Tensor) -> Tensor:
        """States [B, C, h, w] to states [B, C', h, w]."""
        update = self.conv1(F.silu(self.norm1(states)))
        update = self.conv2(F.silu(self.norm2(update)))
        total: Tensor = self.nin_shortcut(states) + update
        return total


class CellAttention(nn.Module):
    """Attention with one head between all cells of an image, added to its input."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, NORM_EPS)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, states: Tensor) -> Tensor:
        """States [B, C, h, w] to states of the same shape."""
        normed = self.norm(states)
        query, key, value = (to_rows(part(normed))[:, None] for part in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        update: Tensor = self.proj_out(to_grid(seen, states.shape[-2], states.shape[-1]))
        return states + update


class Halving(nn.Module):
    """Halves both sides; padded below and on the right only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, states: Tensor) -> Tensor:
        halved: Tensor = self.conv(F.pad(states, (0, 1, 0, 1)))
        return halved


class Doubling(nn.Module):
    """Doubles both sides by repeating each cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, states: Tensor) -> Tensor:
        doubled: Tensor = self.conv(F.interpolate(states, scale_factor=2.0, mode="nearest"))
        return doubled


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention where there is any."""

    def __init__(self, width: int, out: int, blocks: int, groups: int, *, attends: bool) -> None:
        super().__init__()
        widths = [width] + [out] * (blocks - 1)
        self.block = nn.ModuleList(ResidualConvolution(w, out, groups) for w in widths)
        self.attn = nn.ModuleList(CellAttention(out, groups) for _ in widths if attends)
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, states: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            states = block(states)
            if len(self.attn):
                states = self.attn[number](states)
        states = self.upsample(self.downsample(states))
        return states


class Middle(nn.Module):
    """What is between the two nets on either side: a block, attention, a block."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualConvolution(width, width, groups)
        self.attn_1 = CellAttention(width, groups)
        self.block_2 = ResidualConvolution(width, width, groups)

    def forward(self, states: Tensor) -> Tensor:
        states = self.block_2(self.attn_1(self.block_1(states)))
        return states


class ImageReader(nn.Module):
    """Images [B, 3, H, W] to states of cells [B, size, h, w]."""

    def __init__(self, keys: ConvolutionKeys, size: int) -> None:
        super().__init__()
        widths, groups = keys.widths, keys.groups
        self.conv_in = nn.Conv2d(COLOURS, keys.channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(width, out, keys.blocks, groups, attends=number in keys.attention)
            for number, (width, out) in enumerate(
                zip([keys.channels, *widths], widths, strict=False)
            )
        )
        for level, width in zip(self.down[:-1], widths, strict=False):
            level.downsample = Halving(width)
        self.mid = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], size, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.conv_in(pixels)
        for level in self.down:
            states = level(states)
        cells: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(states))))
        return cells


class ImageMaker(nn.Module):
    """States of cells [B, size, h, w] to images [B, 3, H, W]."""

    def __init__(self, keys: ConvolutionKeys, size: int) -> None:
        super().__init__()
        widths, groups = keys.widths, keys.groups
        self.conv_in = nn.Conv2d(size, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList(
            Level(width, out, keys.blocks + 1, groups, attends=number in keys.attention)
            for number, (out, width) in enumerate(
                zip(widths, [*widths[1:], widths[-1]], strict=True)
            )
        )
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level.upsample = Doubling(width)
        self.norm_out = nn.GroupNorm(groups, widths[0], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], COLOURS, 3, padding=1)

    def forward(self, cells: Tensor) -> Tensor:
        states = self.mid(self.conv_in(cells))
        for level in reversed(self.up):
            states = level(states)
        pixels: Tensor = self.conv_out(F.silu(self.norm_out(states)))
        return pixels


def to_rows(grid: Tensor) -> Tensor:
    """[B, C, h, w] as [B, h * w, C]."""
    return grid.flatten(2).transpose(1, 2)


def to_grid(rows: Tensor, height: int, width: int) -> Tensor:
    """[B, h * w, C] as [B, C, h, w]."""
    grid: Tensor = rows.transpose(1, 2).unflatten(2, (height, width))
    return grid


def no_cells(pixels: Tensor, factor: int) -> str | None:
    """What is wrong with images [B, 3, H, W] whose sides are no multiples of `factor`."""
    height, width = pixels.shape[-2:]
    if height % factor == 0 and width % factor == 0:
        return None
    return f"images must have sides that {factor} divides, but have {height} x {width} pixels"
