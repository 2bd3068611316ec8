"""Changes to a picture that leave what it shows, with parameters drawn from a given generator.

Pictures are uint8 tensors [3, H, W]; the arithmetic is torchvision's.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, Any, Final

import numpy as np
from pydantic import Field
from torch import Tensor

from tencentpretrain.config import Config, NonNegativeFloat, NonNegativeInt

LEVELS: Final = 31
"""Magnitudes of RandAugment, as torchvision counts them."""
OPERATIONS: Final = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
SIGNED: Final = OPERATIONS[1:10]


class ColourConfig(Config):
    """Random changes of colour; each is the greatest distance from 1 of a factor, or from 0."""

    brightness: NonNegativeFloat = 0.0
    """Factor on all values."""
    contrast: NonNegativeFloat = 0.0
    """Factor on the distance from the mean grey."""
    saturation: NonNegativeFloat = 0.0
    """Factor on the distance from grey."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Turn of the circle of hues, as a part of it."""


class RandAugmentConfig(Config):
    """RandAugment (Cubuk et al., 2020): some of fourteen operations, all of one strength."""

    layers: NonNegativeInt = 0
    """Operations on each image, one after another; 0 turns it off."""
    magnitude: Annotated[int, Field(ge=0, lt=LEVELS)] = 9
    """Strength of each operation, from 0 to 30."""


@cache
def functional() -> Any:
    """The functions of torchvision, whose import takes as long as that of torch itself."""
    import torchvision.transforms.v2.functional

    return torchvision.transforms.v2.functional


def jitter(image: Tensor, config: ColourConfig, random: np.random.Generator) -> Tensor:
    """Change the colours of `image` in a random order of changes."""
    spans = {
        "brightness": config.brightness,
        "contrast": config.contrast,
        "saturation": config.saturation,
    }
    changes = [name for name, span in spans.items() if span] + ["hue"] * (config.hue > 0)
    for name in random.permutation(changes) if changes else ():
        if name == "hue":
            image = functional().adjust_hue(image, random.uniform(-config.hue, config.hue))
            continue
        factor = random.uniform(max(0.0, 1 - spans[name]), 1 + spans[name])
        image = getattr(functional(), f"adjust_{name}")(image, factor)
    return image


def rand_augment(image: Tensor, config: RandAugmentConfig, random: np.random.Generator) -> Tensor:
    """Apply `config.layers` operations to `image`."""
    for _ in range(config.layers):
        name = OPERATIONS[random.integers(len(OPERATIONS))]
        sign = -1 if name in SIGNED and random.integers(2) else 1
        image = apply_operation(image, name, config.magnitude / (LEVELS - 1), sign)
    return image


def apply_operation(image: Tensor, name: str, strength: float, sign: int = 1) -> Tensor:
    """`image` after the operation `name`.

    Args:
        image: uint8 [3, H, W].
        name: One of `OPERATIONS`.
        strength: From 0 to 1.
        sign: 1 or -1, of those operations that have a direction.
    """
    height, width = image.shape[-2:]
    signed = sign * strength
    if name.startswith(("shear", "translate")):
        along = name.endswith("_x")
        if name.startswith("shear"):
            return _shear(image, math.degrees(math.atan(0.3 * signed)), along)
        shift = int(150 / 331 * (width if along else height) * signed)
        return _affine(image, translate=[shift, 0] if along else [0, shift])
    changed: Tensor = image
    match name:
        case "rotate":
            changed = functional().rotate(image, 30 * signed)
        case "brightness" | "contrast" | "sharpness":
            changed = getattr(functional(), f"adjust_{name}")(image, 1 + 0.9 * signed)
        case "colour":
            changed = functional().adjust_saturation(image, 1 + 0.9 * signed)
        case "posterize":
            changed = functional().posterize(image, 8 - round(4 * strength))
        case "solarize":
            changed = functional().solarize(image, 255 * (1 - strength))
        case "autocontrast":
            changed = functional().autocontrast(image)
        case "equalize":
            changed = functional().equalize(image)
    return changed


def _shear(image: Tensor, angle: float, along: bool) -> Tensor:
    return _affine(image, shear=[angle, 0.0] if along else [0.0, angle], center=[0.0, 0.0])


def _affine(
    image: Tensor,
    translate: list[int] | None = None,
    shear: list[float] | None = None,
    center: list[float] | None = None,
) -> Tensor:
    changed: Tensor = functional().affine(
        image,
        angle=0.0,
        translate=[float(shift) for shift in translate or (0, 0)],
        scale=1.0,
        shear=shear or [0.0, 0.0],
        center=center,
    )
    return changed
