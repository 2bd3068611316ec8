"""Rotary positions (Su et al., 2021, RoFormer, section 3.2) and their published extensions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tencentpretrain.config import Config, PositiveFloat, PositiveInt, check

Layout = Literal["halves", "interleaved"]


class RotaryScaling(Config):
    """How positions beyond those of training are reached."""

    kind: Literal["linear", "dynamic", "llama3"]
    """`linear` divides positions (Chen et al., 2023), `dynamic` raises theta with the length beyond
    `length` (NTK-aware), `llama3` stretches long wavelengths only (Llama 3.1)."""
    factor: PositiveFloat
    """How many times longer rows become."""
    length: PositiveInt = 8192
    """Positions that the model was trained with; not read by linear."""
    low: PositiveFloat = 1.0
    """llama3: waves that fit less often than this into `length` are divided by the factor."""
    high: PositiveFloat = 4.0
    """llama3: waves that fit more often than this into `length` stay as they are."""

    @check("low", "high")
    def _bands(self) -> str | None:
        return (
            None if self.low < self.high else f"low={self.low} must be less than high={self.high}"
        )


class RotaryConfig(Config):
    """Queries and keys are turned by angles that grow with their positions."""

    theta: PositiveFloat = 10000.0
    """Base of the wavelengths."""
    local_theta: PositiveFloat | None = None
    """Base in layers with a window; null is theta."""
    layout: Layout = "halves"
    """Which elements of a head turn together: i and i + H/2 (halves), or neighbours
    (interleaved, as in Meta's files)."""
    scaling: RotaryScaling | None = None
    """Extension to longer rows; null is none."""


class Rotary:
    """Angles of one base for heads of one size.

    Args:
        config: What was published for the family.
        size: Width H of a head.
        theta: Base of the wavelengths.
    """

    def __init__(self, config: RotaryConfig, size: int, theta: float) -> None:
        self._config = config
        self._size = size
        self._theta = theta
        # Only saves time: tables are functions of length and device.
        self._made: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def tables(self, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines [S, H] in fp32 of the positions `start` to `start + length`."""
        stop = start + length
        scaling = self._config.scaling
        if torch.compiler.is_compiling() or (scaling is not None and scaling.kind == "dynamic"):
            cosines, sines = self._make(stop, device)
            return cosines[start:], sines[start:]
        made = self._made.get(device)
        if made is None or len(made[0]) < stop:
            # A power of two, so that decoding token by token seldom makes tables.
            with torch.inference_mode(False):
                made = self._made[device] = self._make(1 << (stop - 1).bit_length(), device)
        return made[0][start:stop], made[1][start:stop]

    def _make(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, dtype=torch.float32, device=device)
        angles = positions[:, None] * self._frequencies(length, device)
        if self._config.layout == "halves":
            angles = torch.cat([angles, angles], -1)
        else:
            angles = angles.repeat_interleave(2, -1)
        return angles.cos(), angles.sin()

    def _frequencies(self, length: int, device: torch.device) -> Tensor:
        """Angle per position [H/2]."""
        scaling, theta = self._config.scaling, self._theta
        if scaling is not None and scaling.kind == "dynamic" and length > scaling.length:
            growth = scaling.factor * length / scaling.length - (scaling.factor - 1)
            theta *= growth ** (self._size / (self._size - 2))
        exponents = torch.arange(0, self._size, 2, dtype=torch.float32, device=device) / self._size
        frequencies = 1.0 / theta**exponents
        if scaling is None or scaling.kind == "dynamic":
            return frequencies
        if scaling.kind == "linear":
            return frequencies / scaling.factor
        turns = scaling.length * frequencies / (2 * math.pi)
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / scaling.factor)

    def turn(self, heads: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Turn `heads` [B, N, S, H] by `tables`; in fp32, in and out in the type of `heads`."""
        cosines, sines = tables
        if self._config.layout == "halves":
            first, second = heads.chunk(2, -1)
            turned = torch.cat([-second, first], -1)
        else:
            turned = torch.stack([-heads[..., 1::2], heads[..., ::2]], -1).flatten(-2)
        return (heads * cosines + turned * sines).to(heads.dtype)
