"""Normalisation layers by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

NormName = Literal["layer", "rms", "none"]


def build_norm(name: NormName, size: int, eps: float) -> nn.Module:
    """Norm over the last dimension, of `size`.

    "layer" is that of Ba et al. (2016), "rms" that of Zhang and Sennrich (2019).
    The gain starts at 1 and the bias at 0; "none" is the identity.
    """
    if name == "layer":
        return nn.LayerNorm(size, eps=eps)
    if name == "rms":
        return nn.RMSNorm(size, eps=eps)
    return nn.Identity()
