"""Factors of a low-rank update: how they start, and what they make of a weight.

Shapes: O rows and I columns of the weight, R rank. The update is `scale * B W A` with A [R, I], the
mixer W [R, R] (absent in plain LoRA) and B [O, R].
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from tencentpretrain.data.order import hash_int

DownName = Literal["kaiming", "gaussian"]
MixerName = Literal[
    "none",
    "identity",
    "kaiming",
    "kaiming_unit",
    "orthogonal",
    "normal",
    "butterfly",
    "zeros",
]
DOWN: Final = "lora_a"
UP: Final = "lora_b"
MIXER: Final = "lora_mixer"
MAGNITUDE: Final = "lora_magnitude"
FACTORS: Final = (DOWN, UP, MIXER, MAGNITUDE)
"""Names of the tensors beside an adapted weight."""


def is_factor(name: str) -> bool:
    """Whether a tensor of a model is called like a factor."""
    return name.rpartition(".")[2] in FACTORS


@dataclass(frozen=True)
class Update:
    """What kind of update an adapter learns.

    Args:
        rank: R.
        scale: Factor of the product.
        dropout: Dropout rate of what A reads.
        down: How A starts.
        mixer: How W starts, or that there is none.
        is_mixer_trained: Whether W trains.
        mixer_rate: Factor of the learning rate of W.
        has_magnitude: Whether the norms of the weight's rows are learned apart (DoRA).
    """

    rank: int
    scale: float
    dropout: float = 0.0
    down: DownName = "kaiming"
    mixer: MixerName = "none"
    is_mixer_trained: bool = True
    mixer_rate: float = 1.0
    has_magnitude: bool = False


def random_stream(seed: int, module: str, factor: str) -> torch.Generator:
    """Chance for one factor of one module, a function of nothing but the arguments.

    So A is the same with and without a mixer, and whatever else is adapted.
    """
    name = hashlib.blake2b(f"{module}/{factor}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(hash_int(seed, int.from_bytes(name)) >> 1)


def down_values(shape: torch.Size, name: DownName, generator: torch.Generator) -> Tensor:
    """Values of A [R, I] in fp32: uniform within 1/sqrt(I), or normal with deviation 1/R."""
    rank, inputs = shape
    if name == "gaussian":
        return torch.randn(shape, generator=generator) / rank
    bound = 1 / math.sqrt(inputs)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def mixer_values(rank: int, name: MixerName, generator: torch.Generator) -> Tensor:
    """Values of the mixer [R, R] in fp32 (Wu et al., 2024, section 3).

    `kaiming` has the variance 1/(3 R) of torch's linear layers, so the branch starts with a third
    of the variance of LoRA's; `kaiming_unit` and `orthogonal` keep it.
    """
    if name == "identity":
        return torch.eye(rank)
    if name == "butterfly":
        return torch.eye(rank // 2).repeat(2, 2)
    if name == "zeros":
        return torch.zeros(rank, rank)
    if name == "normal":
        return torch.randn(rank, rank, generator=generator)
    if name == "orthogonal":
        return nn.init.orthogonal_(torch.empty(rank, rank), generator=generator)
    bound = math.sqrt((3 if name == "kaiming_unit" else 1) / rank)
    return torch.empty(rank, rank).uniform_(-bound, bound, generator=generator)


def mixed_down(down: Tensor, mixer: Tensor | None) -> Tensor:
    """A' = W A [R, I] in fp32 or better: with it, plain LoRA computes the same."""
    exact = down.to(torch.promote_types(down.dtype, torch.float32))
    return exact if mixer is None else mixer.to(exact) @ exact


def row_norms(weight: Tensor) -> Tensor:
    """Norm [O] of each row of a weight [O, I]; DoRA's magnitudes start with it."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return norms


def updated(
    weight: Tensor,
    down: Tensor,
    up: Tensor,
    scale: float,
    mixer: Tensor | None = None,
    magnitude: Tensor | None = None,
) -> Tensor:
    """The weight [O, I] that computes what `weight` and its update compute, of the same type.

    LoRA (Hu et al., 2021, section 4.1), MoSLoRA (Wu et al., 2024, section 3), and with a
    magnitude [O] DoRA (Liu et al., 2024, equation 5).
    """
    low = mixed_down(down, mixer)
    exact = torch.addmm(weight.to(low), up.to(low), low, alpha=scale)
    if magnitude is not None:
        exact = exact * (magnitude.to(low) / row_norms(exact))[:, None]
    return exact.to(weight.dtype)
