"""Activation functions by name."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

ActivationName = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh"]


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), the approximation that CLIP was trained with."""

    def forward(self, states: Tensor) -> Tensor:
        return states * torch.sigmoid(1.702 * states)


def build_activation(name: ActivationName) -> nn.Module:
    """The activation `name`; "gelu" is exact (erf), "gelu_tanh" its published approximation."""
    if name == "gelu":
        return nn.GELU()
    if name == "gelu_tanh":
        return nn.GELU(approximate="tanh")
    if name == "quick_gelu":
        return QuickGelu()
    if name == "relu":
        return nn.ReLU()
    return nn.SiLU() if name == "silu" else nn.Tanh()
