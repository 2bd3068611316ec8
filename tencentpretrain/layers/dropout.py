"""Dropout (Srivastava et al., 2014) that is cheap on the CPU too."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LEVELS = 1 << 16


def draw_mask(like: Tensor, rate: float) -> Tensor:
    """A tensor shaped as `like`: 0 with probability `rate`, else 1 / (1 - rate).

    torch draws one Bernoulli value at a time on the CPU. Here torch's generator gives but the seed
    of a faster one, whose 64-bit words hold four draws each; the rate is exact to 1/65536, and the
    scale belongs to the rate that was applied, so that the expectation is as exact as the type of
    `like` can hold the scale.
    """
    if not like.numel():
        return torch.empty_like(like)
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    seed = torch.empty(2, dtype=torch.int64).random_().numpy()
    words = torch.from_numpy(np.random.SFC64(seed).random_raw((like.numel() + 3) // 4))
    draws = words.view(torch.int16)[: like.numel()].view(like.shape)
    kept = draws.ge_(dropped - _LEVELS // 2)
    scale = torch.tensor(_LEVELS / (_LEVELS - dropped), dtype=like.dtype)
    if like.dtype.itemsize == kept.dtype.itemsize:
        # 0 or 1 times the bits of the scale are the bits of the mask: no pass for a conversion.
        return kept.mul_(scale.view(kept.dtype)).view(like.dtype)
    return kept.to(like.dtype).mul_(scale)


class _MaskedScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, rate: float) -> Tensor:
        mask = draw_mask(states, rate)
        ctx.save_for_backward(mask)
        return states * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad * mask, None


def dropout(states: Tensor, rate: float, training: bool) -> Tensor:
    """Drop elements of `states` with probability `rate` and scale the rest, while training."""
    if not training or rate == 0.0:
        return states
    if states.device.type == "cpu" and not torch.compiler.is_compiling():
        dropped: Tensor = _MaskedScale.apply(states, rate)  # type: ignore[no-untyped-call]
        return dropped
    return F.dropout(states, rate)


class Dropout(nn.Module):
    """Module form of `dropout`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, states: Tensor) -> Tensor:
        return dropout(states, self.rate, self.training)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
