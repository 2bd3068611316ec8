"""From decoded pictures to the pixels that a model reads, for training and for evaluation."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import get_worker_info

from tencentpretrain.config import Config, NonNegativeInt, PositiveFloat, PositiveInt, check
from tencentpretrain.data.media.augment import (
    ColourConfig,
    RandAugmentConfig,
    functional,
    jitter,
    rand_augment,
)
from tencentpretrain.data.media.images import Pixels

Triple = tuple[float, float, float]
Scales = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Span = tuple[PositiveFloat, PositiveFloat]

TRIES: Final = 10
"""Random areas that are tried before the middle of a very long picture is taken."""


class ImageTransformConfig(Config):
    """How decoded images become the pixels of a model."""

    size: PositiveInt = 224
    """Height and width of the pixels."""
    resize: PositiveInt | None = None
    """Length of the shorter edge, before the middle is cut out; null stretches the whole image to
    size x size. Evaluation always does this, training where crop is `center` or `random`."""
    crop: Literal["center", "random", "resized"] = "resized"
    """What training cuts out: as evaluation (`center`), a place drawn after adding `padding` at all
    edges (`random`), or an area of random size and shape that is resized (`resized`)."""
    padding: NonNegativeInt = 0
    """Black pixels around the image, where crop is `random`."""
    scale: Span = (0.08, 1.0)
    """Least and greatest share of the image, where crop is `resized`."""
    ratio: Span = (3 / 4, 4 / 3)
    """Least and greatest width over height, where crop is `resized`."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of swapping left and right in training."""
    colour: ColourConfig = ColourConfig()
    """Random changes of colour in training."""
    rand_augment: RandAugmentConfig = RandAugmentConfig()
    """RandAugment in training."""
    mean: Triple = (0.5, 0.5, 0.5)
    """Subtracted from red, green and blue, which are between 0 and 1."""
    std: Scales = (0.5, 0.5, 0.5)
    """Divisor of red, green and blue, after subtracting the mean."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """How images are resized, with antialiasing."""

    @check("size", "resize")
    def _resize_holds_size(self) -> str | None:
        if self.resize is None or self.resize >= self.size:
            return None
        return f"resize must be at least size={self.size}, but is {self.resize}"

    @check("scale", "ratio")
    def _spans_grow(self) -> str | None:
        if self.scale[0] > self.scale[1] or self.ratio[0] > self.ratio[1]:
            return "scale and ratio must hold the least number first"
        return None if self.scale[1] <= 1 else f"scale must be at most 1, but is {self.scale[1]}"

    @check("padding", "crop")
    def _padding_is_for_random(self) -> str | None:
        if not self.padding or self.crop == "random":
            return None
        return f"padding is for crop=random, but crop is {self.crop}; leave one of them out"


class ImageTransform:
    """Turns images into pixels.

    Args:
        config: How.
    """

    def __init__(self, config: ImageTransformConfig) -> None:
        self.config = config
        self._mode = _resize_mode(config.interpolation)
        # One multiplication and one addition: (x / 255 - mean) / std.
        std = torch.tensor(config.std, dtype=torch.float64)
        mean = torch.tensor(config.mean, dtype=torch.float64)
        self._factor = (1 / (255 * std)).float()[:, None, None]
        self._shift = (-mean / std).float()[:, None, None]

    def draw(self, image: Pixels, random: np.random.Generator | None) -> Tensor:
        """`augment` where there is something to draw from, as in training, and `fit` elsewhere."""
        return self.fit(image) if random is None else self.augment(image, random)

    def augment(self, image: Pixels, random: np.random.Generator) -> Tensor:
        """Pixels [3, size, size] uint8 of `image` [H, W, 3], changed as `random` draws."""
        config = self.config
        pixels = self._cut(image, random)
        if config.flip and random.random() < config.flip:
            pixels = pixels.flip(-1)
        pixels = jitter(pixels, config.colour, random)
        return rand_augment(pixels, config.rand_augment, random)

    def fit(self, image: Pixels) -> Tensor:
        """Pixels [3, size, size] uint8 of `image` [H, W, 3]; always the same."""
        pixels, size = _tensor(image), self.config.size
        pixels = self._resize(pixels)
        # Rounded down as in transformers; torchvision's rounds to even numbers.
        top, left = ((edge - size) // 2 for edge in pixels.shape[-2:])
        return pixels[:, top : top + size, left : left + size]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Floats of uint8 `pixels` [..., 3, H, W] with mean and standard deviation taken out."""
        is_sent = pixels.dim() == 4 and get_worker_info() is not None
        found = _shared(pixels.shape) if is_sent else torch.empty(0)
        return torch.mul(pixels, self._factor, out=found).add_(self._shift)

    def _cut(self, image: Pixels, random: np.random.Generator) -> Tensor:
        config = self.config
        if config.crop == "resized":
            height, width = image.shape[:2]
            area = draw_area(height, width, config.scale, config.ratio, random)
            top, left, height, width = area
            pixels = _tensor(image[top : top + height, left : left + width])
            return self._to(pixels, [config.size, config.size])
        if config.crop == "center":
            return self.fit(image)
        pixels = self._resize(_tensor(image))
        if config.padding:
            pixels = functional().pad(pixels, [config.padding])
        height, width = pixels.shape[-2:]
        top = int(random.integers(height - config.size + 1))
        left = int(random.integers(width - config.size + 1))
        return pixels[:, top : top + config.size, left : left + config.size]

    def _resize(self, pixels: Tensor) -> Tensor:
        size, shorter = self.config.size, self.config.resize
        return self._to(pixels, [size, size] if shorter is None else [shorter])

    def _to(self, pixels: Tensor, size: list[int]) -> Tensor:
        """`pixels` resized to a height and width, or to a length of the shorter edge."""
        if list(pixels.shape[-2:]) == size:
            return pixels
        resized: Tensor = functional().resize(pixels, size, self._mode, antialias=True)
        return resized


def _resize_mode(name: str) -> Any:
    """What torchvision calls a way of resizing; its own "nearest" is not that of Pillow."""
    # Imported here once, and not in each worker of a loader.
    from torchvision.transforms import InterpolationMode

    return InterpolationMode("nearest-exact" if name == "nearest" else name)


def draw_area(
    height: int, width: int, scale: Span, ratio: Span, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random area (Inception crop; Szegedy et al., 2015, 6).

    Args:
        height: Of the image.
        width: Of the image.
        scale: Least and greatest share of the image.
        ratio: Least and greatest width over height, drawn evenly on a logarithmic scale.
        random: What is drawn from.
    """
    for _ in range(TRIES):
        area = height * width * random.uniform(*scale)
        shape = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            return int(top), int(left), h, w
    # As much of the middle as the ratios allow.
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def _shared(shape: torch.Size) -> Tensor:
    """Room for floats that a worker of a loader can hand over without copying them."""
    storage = torch.UntypedStorage._new_shared(4 * shape.numel())
    return torch.empty(0).set_(storage, 0, shape)  # type: ignore[call-overload, no-any-return]


def _tensor(image: Pixels) -> Tensor:
    """The tensor [3, H, W] over the memory of `image`."""
    return torch.from_numpy(image).permute(2, 0, 1)
