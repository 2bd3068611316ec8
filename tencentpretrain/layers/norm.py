"""Normalisation layers by name."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["layer", "layer_gain", "rms", "t5", "legacy", "none"]


class RmsNorm(nn.RMSNorm):
    """RMS norm in the type of its gain where that is the more exact one.

    Torch has a fused kernel only for states and gains of one type, and warns of any other mixture.
    """

    def forward(self, states: Tensor) -> Tensor:
        dtype = torch.promote_types(states.dtype, self.weight.dtype)
        normed = F.rms_norm(
            states.to(dtype), self.normalized_shape, self.weight.to(dtype), self.eps
        )
        return normed.to(states.dtype)


class T5Norm(nn.Module):
    """RMS norm whose gain is applied in the type of the states (Raffel et al., 2020)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, states: Tensor) -> Tensor:
        exact = states.float()
        scale = torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (exact * scale).to(states.dtype)


class LegacyNorm(nn.Module):
    """The layer norm of TencentPretrain and UER-py, for their checkpoints only.

    It divides by the unbiased deviation plus eps, as no published model does.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, states: Tensor) -> Tensor:
        exact = states.float()
        deviation, mean = torch.std_mean(exact, -1, keepdim=True)
        normed = self.weight * ((exact - mean) / (deviation + self.eps)) + self.bias
        return normed.to(states.dtype)


def build_norm(name: NormName, size: int, eps: float) -> nn.Module:
    """Norm over the last dimension, of `size`.

    "layer" is that of Ba et al. (2016), "layer_gain" the same without a bias, "rms" that of Zhang
    and Sennrich (2019), "t5" the one of T5. Gains start at 1, biases at 0; "none" is the identity.
    """
    if name in ("layer", "layer_gain"):
        return nn.LayerNorm(size, eps=eps, bias=name == "layer")
    if name == "rms":
        return RmsNorm(size, eps=eps)
    if name == "t5":
        return T5Norm(size, eps)
    return LegacyNorm(size, eps) if name == "legacy" else nn.Identity()
