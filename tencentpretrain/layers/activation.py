"""Activation functions by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

ActivationName = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]


def build_activation(name: ActivationName) -> nn.Module:
    """The activation `name`; "gelu" is exact (erf), "gelu_tanh" its published approximation."""
    if name == "gelu":
        return nn.GELU()
    if name == "gelu_tanh":
        return nn.GELU(approximate="tanh")
    if name == "relu":
        return nn.ReLU()
    return nn.SiLU() if name == "silu" else nn.Tanh()
