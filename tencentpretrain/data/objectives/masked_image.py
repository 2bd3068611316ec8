"""Images with hidden patches: masked autoencoders (MAE) and simple masked images (SimMIM)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from tencentpretrain.config import ComponentConfig, PositiveInt, Probability, check
from tencentpretrain.data.media.examples import image_stream
from tencentpretrain.data.media.transforms import ImageTransformConfig
from tencentpretrain.data.objectives.base import OBJECTIVES, Example
from tencentpretrain.data.objectives.pixels import PixelObjective, require_images
from tencentpretrain.data.order import generator
from tencentpretrain.types import SRC, Batch, Labels


class MaskedImageConfig(ComponentConfig):
    """Keys of objectives that hide patches."""

    transform: ImageTransformConfig = ImageTransformConfig(
        scale=(0.2, 1.0), interpolation="bicubic"
    )
    """How images become pixels."""
    patch_size: PositiveInt = 16
    """Height and width of a patch, in pixels, as in the patch part of the model's embedding."""

    @check("transform", "patch_size")
    def _patches_fit(self) -> str | None:
        if self.transform.size % self.patch_size == 0:
            return None
        return f"patch_size must divide transform.size={self.transform.size}"

    @property
    def side(self) -> int:
        """Number of patches from one edge to the other."""
        return self.transform.size // self.patch_size


class MaskedImageObjective(PixelObjective):
    """Makes pixels and hides patches of them, both with the example's own generator.

    An example holds "pixels" [3, H, W] uint8, and "hidden" [P] bool. Evaluation changes nothing of
    the images, but hides patches as training does.
    """

    def _prepare(self) -> None:
        require_images(self)
        super()._prepare()

    @abstractmethod
    def hide(self, random: Generator) -> NDArray[np.bool_]:
        """Which patches [P] are hidden."""

    def make(self, epoch: int, index: int) -> Example:
        random = generator(self.seed, epoch, index)
        pixels = self.pixels(int(self.documents[index]), random)
        return {"pixels": pixels, "hidden": self.hide(random)}

    def collate(self, examples: Sequence[Example]) -> Batch:
        hidden = torch.from_numpy(np.stack([example["hidden"] for example in examples]))
        stream = image_stream(self.normalised(examples))
        stream.inputs |= self.seen(hidden)
        index = hidden.flatten().nonzero().squeeze(1)
        labels = {self.supervises[0]: Labels(index, index)}
        return Batch({SRC: stream}, labels, tokens=len(examples))

    @abstractmethod
    def seen(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the embedding is told of `hidden` [B, P]."""


@OBJECTIVES.register("mae")
class MaeObjective(MaskedImageObjective):
    """Random patches are left out of what the encoder reads (He et al., 2022, MAE, section 3)."""

    class Config(MaskedImageConfig):
        mask_rate: Probability = 0.75
        """Share of the patches that are hidden."""

        @check("transform", "patch_size", "mask_rate")
        def _some_are_seen(self) -> str | None:
            return _neither_all_nor_none(self.mask_rate, self.side**2)

    config: Config
    supervises = ("masked_pixels",)

    def hide(self, random: Generator) -> NDArray[np.bool_]:
        return _hidden(random, self.config.mask_rate, self.config.side**2)

    def seen(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        kept = (~hidden).nonzero()[:, 1]
        return {"kept": kept.view(len(hidden), -1)}


@OBJECTIVES.register("simmim")
class SimmimObjective(MaskedImageObjective):
    """A learned vector stands for random squares (Xie et al., 2022, SimMIM, section 3.2)."""

    class Config(MaskedImageConfig):
        mask_rate: Probability = 0.6
        """Share of the squares that are hidden."""
        mask_size: PositiveInt = 32
        """Height and width of a hidden square, in pixels; patches must fit into it."""

        @check("transform", "patch_size", "mask_size")
        def _squares_fit(self) -> str | None:
            size = self.transform.size
            if size % self.mask_size == 0 and self.mask_size % self.patch_size == 0:
                return None
            return (
                f"mask_size must divide transform.size={size} and be divisible by "
                f"patch_size={self.patch_size}, but is {self.mask_size}"
            )

        @check("transform", "mask_size", "mask_rate")
        def _some_are_seen(self) -> str | None:
            return _neither_all_nor_none(self.mask_rate, self.squares**2)

        @property
        def squares(self) -> int:
            """Number of squares from one edge to the other."""
            return self.transform.size // self.mask_size

    config: Config
    supervises = ("linear_pixels",)

    def hide(self, random: Generator) -> NDArray[np.bool_]:
        side, repeats = self.config.squares, self.config.mask_size // self.config.patch_size
        grid = _hidden(random, self.config.mask_rate, side**2).reshape(side, side)
        return grid.repeat(repeats, 0).repeat(repeats, 1).reshape(-1)

    def seen(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"masked": hidden}


def _hidden(random: Generator, rate: float, count: int) -> NDArray[np.bool_]:
    """Which of `count` are hidden; as many as `rate` says in every draw."""
    hidden = np.ones(count, np.bool_)
    hidden[random.permutation(count)[: _kept(rate, count)]] = False
    return hidden


def _kept(rate: float, count: int) -> int:
    """How many of `count` are seen; rounded down, as published."""
    return int(count * (1 - rate))


def _neither_all_nor_none(rate: float, count: int) -> str | None:
    if 0 < _kept(rate, count) < count:
        return None
    return f"mask_rate={rate} would hide all or none of {count}; choose another rate"
