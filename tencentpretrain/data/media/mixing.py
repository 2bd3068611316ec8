"""Two pictures in one, with a share of both labels (mixup, CutMix)."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from tencentpretrain.config import Config, NonNegativeFloat


class MixConfig(Config):
    """How training images are mixed with others; where both ways are on, each has half of them."""

    mixup: NonNegativeFloat = 0.0
    """Mixup (Zhang et al., 2018): shares are drawn from Beta(mixup, mixup); 0 turns it off."""
    cutmix: NonNegativeFloat = 0.0
    """CutMix (Yun et al., 2019): areas are drawn from Beta(cutmix, cutmix); 0 turns it off."""
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the images that are mixed at all."""

    @property
    def is_on(self) -> bool:
        """Whether any image is mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def applies(self, random: np.random.Generator) -> bool:
        """Whether the next image is mixed."""
        return self.is_on and random.random() < self.probability


def mix(
    image: Tensor, other: Tensor, config: MixConfig, random: np.random.Generator
) -> tuple[Tensor, float]:
    """`image` mixed with `other`, both uint8 [3, H, W], and the share of `image` in it."""
    cuts = random.random() < 0.5 if config.mixup and config.cutmix else config.cutmix > 0
    strength = config.cutmix if cuts else config.mixup
    share = float(random.beta(strength, strength))
    if not cuts:
        blend = image.float().mul_(share).add_(other.float(), alpha=1 - share)
        return blend.round_().to(image.dtype), share
    return paste(image, other, share, random)


def paste(
    image: Tensor, other: Tensor, share: float, random: np.random.Generator
) -> tuple[Tensor, float]:
    """`image` with a part of `other` in its place, of the shape of the whole (CutMix, A.1).

    The part has the share 1 - `share` of the area, as far as it is within the image; the share of
    `image` that is returned is exact.
    """
    height, width = image.shape[-2:]
    edge = math.sqrt(1 - share)
    y, x = int(random.integers(height)), int(random.integers(width))
    half_height, half_width = int(height * edge) // 2, int(width * edge) // 2
    rows = slice(max(0, y - half_height), min(height, y + half_height))
    columns = slice(max(0, x - half_width), min(width, x + half_width))
    mixed = image.clone()
    mixed[:, rows, columns] = other[:, rows, columns]
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - pasted / (height * width)
