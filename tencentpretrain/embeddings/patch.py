"""Parts that embed images as rows of patches, and where each patch lies (Dosovitskiy et al., 2021).

Shapes: B images, C values of a pixel, P patches, K of them that are seen, S positions, E width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, PositiveFloat, PositiveInt, check
from tencentpretrain.embeddings.base import PARTS, EmbeddingPart
from tencentpretrain.embeddings.text import Table
from tencentpretrain.errors import DataError
from tencentpretrain.layers.patch_scores import resize_rows
from tencentpretrain.sizes import Patches, Sizes
from tencentpretrain.types import Layout, Stream

Side = PositiveInt | tuple[PositiveInt, PositiveInt]


def cut(pixels: Tensor, patches: Patches, chosen: Tensor | None = None) -> Tensor:
    """Values of the patches [B, P, V] of `pixels` [B, C, H, W], each channel by channel.

    Args:
        pixels: The images.
        patches: What they are cut into.
        chosen: [B, K] numbers of the patches that are wanted; None is all.

    Raises:
        DataError: if the images have another size.
    """
    (height, width), channels = patches.size, patches.channels
    wanted = channels, patches.rows * height, patches.columns * width
    if tuple(pixels.shape[1:]) != wanted:
        given = " x ".join(map(str, pixels.shape[1:]))
        raise DataError(
            f"images must be {' x '.join(map(str, wanted))} (channels, height, width) by the patch "
            f"part of the model's embedding, but are {given}; resize them, or set image_size and "
            "channels there"
        )
    shape = len(pixels), channels, patches.rows, height, patches.columns, width
    grid = pixels.reshape(shape).permute(0, 2, 4, 1, 3, 5)
    if chosen is None:
        return grid.reshape(len(pixels), patches.count, patches.values)
    image = torch.arange(len(pixels), device=pixels.device)[:, None]
    found = grid[image, chosen // patches.columns, chosen % patches.columns]
    return found.flatten(2)


@PARTS.register("patch")
class PatchEmbedding(EmbeddingPart):
    """Embeds the patches of the stream's "pixels" [B, C, H, W], maybe behind a class token.

    Where the stream has "kept" [B, K], the numbers of some patches, only these are read (He et al.,
    2022, MAE, section 3). Where it has "masked" [B, P] bool, a learned vector stands for these
    (Bao et al., 2022, BEiT, section 2.3).
    """

    has_content = True

    class Config(ComponentConfig):
        image_size: Side = 224
        """Height and width of images, in pixels; one number for both."""
        patch_size: Side = 16
        """Height and width of a patch, in pixels; one number for both."""
        channels: PositiveInt = 3
        """Values of a pixel."""
        bias: bool = True
        """Whether the projection of patches has a bias (TencentPretrain's and CLIP's have none)."""
        class_token: bool = True
        """Whether a learned vector that belongs to no patch comes first."""
        mask_token: bool = False
        """Whether there is a learned vector for masked patches (BEiT, SimMIM)."""

        @check("image_size", "patch_size")
        def _divides(self) -> str | None:
            (height, width), (down, right) = _pair(self.image_size), _pair(self.patch_size)
            if height % down == 0 and width % right == 0:
                return None
            return (
                f"patch_size must divide image_size, but {down} x {right} does not divide "
                f"{height} x {width}"
            )

        @property
        def patches(self) -> Patches:
            """What images are cut into."""
            (height, width), size = _pair(self.image_size), _pair(self.patch_size)
            grid = height // size[0], width // size[1]
            return Patches(size, *grid, self.channels, int(self.class_token))

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.patches = config.patches
        width, size = sizes.embedding, self.patches.size
        # Shaped as the convolution that it is called elsewhere; as a product of matrices a step
        # takes 1.2 to 1.9 times less on the CPU.
        self.weight = nn.Parameter(torch.empty(width, config.channels, *size))
        self.bias = nn.Parameter(torch.empty(width)) if config.bias else None
        self.class_token = nn.Parameter(torch.empty(width)) if config.class_token else None
        self.mask_token = nn.Parameter(torch.empty(width)) if config.mask_token else None

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        for token in (self.class_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=std)

    def layout(self, stream: Stream) -> Layout:
        """All positions of each image, or those of the patches that are kept."""
        pixels, kept = stream.inputs["pixels"], stream.inputs.get("kept")
        count = self.patches.count if kept is None else kept.shape[1]
        shape = len(pixels), self.patches.before + count
        return Layout(torch.ones(shape, dtype=torch.bool, device=pixels.device))

    def numbered(self, stream: Stream) -> Stream:
        """With "positions" [B, S] where only some patches are read, for parts with tables."""
        kept = stream.inputs.get("kept")
        if kept is None:
            return stream
        # A class token is always kept.
        positions = F.pad(kept + self.patches.before, (self.patches.before, 0))
        return Stream(stream.inputs | {"positions": positions}, stream.layout)

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        values = cut(stream.inputs["pixels"], self.patches, stream.inputs.get("kept"))
        states = F.linear(values, self.weight.flatten(1), self.bias)
        masked = stream.inputs.get("masked")
        if masked is not None:
            states = self._hide(states, masked)
        if self.class_token is None:
            return states
        first = self.class_token.to(states.dtype).expand(len(states), 1, -1)
        return torch.cat([first, states], 1)

    def _hide(self, states: Tensor, masked: Tensor) -> Tensor:
        if self.mask_token is None:
            raise DataError(
                "the data hides patches, but the embedding has no vector for them; set "
                "mask_token=true in its patch part"
            )
        if masked.shape != states.shape[:2]:
            raise DataError(
                f"the data hides some of {masked.shape[1]} patches, but the embedding makes "
                f"{states.shape[1]}; give objective and patch part the same sizes of image and "
                "patch"
            )
        return torch.where(masked[..., None], self.mask_token.to(states.dtype), states)


def _pair(side: int | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


@PARTS.register("patch_position")
class PatchPositionEmbedding(Table):
    """Learned positions of all patches and of what comes before them."""

    class Config(ComponentConfig):
        needs_patches: ClassVar[bool] = True
        interpolate: bool = True
        """Whether a checkpoint's table for other sizes is resized on loading instead of refused."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        assert sizes.patches is not None
        self.patches = sizes.patches
        self.interpolate = config.interpolate
        super().__init__(self.patches.positions, sizes.embedding)

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        positions = stream.inputs.get("positions")
        return self.weight if positions is None else F.embedding(positions, self.weight)

    def resized(self, name: str, value: Tensor) -> Tensor | None:
        """A table of another grid, resized bicubically (Dosovitskiy et al., 2021, section 3.2)."""
        if not self.interpolate:
            return None
        grid = self.patches.rows, self.patches.columns
        return resize_rows(value, self.patches.before, grid, "bicubic")


@PARTS.register("patch_waves")
class PatchWavesEmbedding(EmbeddingPart):
    """Fixed waves of the column and the row of each patch; nothing is learned (MAE)."""

    class Config(ComponentConfig):
        needs_patches: ClassVar[bool] = True
        longest: PositiveFloat = 10000.0
        """Length of the longest wave over 2 pi, in patches."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        assert sizes.patches is not None
        self.waves = PatchWaves(sizes.patches, sizes.embedding, config.longest)

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        positions = stream.inputs.get("positions")
        table: Tensor = self.waves.table
        return table if positions is None else F.embedding(positions, table)


class PatchWaves(nn.Module):
    """A fixed table [S, E]: half of the width is for the column and half for the row of a patch.

    Each half holds all sines, then all cosines, as the published weights of MAE do (He et al.,
    2022). What comes before the patches has zeros.

    Args:
        patches: The grid.
        width: E, a multiple of 4.
        longest: Length of the longest wave over 2 pi, in patches.

    Raises:
        ValueError: if the width is none.
    """

    table: Tensor

    def __init__(self, patches: Patches, width: int, longest: float = 10000.0) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"waves of patches need a width that 4 divides, but it is {width}")
        self.patches = patches
        self.longest = longest
        shape = patches.positions, width
        # It follows from the config, so no checkpoint holds it.
        self.register_buffer("table", torch.empty(shape), persistent=False)

    def init_weights(self, std: float) -> None:
        patches, table = self.patches, self.table
        quarter = table.shape[1] // 4
        steps = torch.arange(quarter, dtype=torch.float64, device=table.device)
        frequencies = torch.exp(steps * (-math.log(self.longest) / quarter))
        numbers = torch.arange(patches.count, device=table.device)
        angles = [
            side[:, None] * frequencies
            for side in (numbers % patches.columns, numbers // patches.columns)
        ]
        waves = torch.cat([part for a in angles for part in (a.sin(), a.cos())], 1)
        with torch.no_grad():
            table.zero_()
            table[patches.before :] = waves
