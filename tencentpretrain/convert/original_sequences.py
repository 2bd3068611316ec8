"""Recurrent and convolutional encoders of TencentPretrain and UER-py.

Shapes: I width of what a layer reads, K positions that a kernel reads, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tencentpretrain.convert.table import Rule
from tencentpretrain.convert.transforms import Numbers, Transform


@dataclass(frozen=True)
class FirstKernel(Transform):
    """Kernels [O, 1, K, I] over the embedding become [O, I, K]."""

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [tensor.squeeze(1).transpose(1, 2) for tensor in theirs]

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [tensor.transpose(1, 2).unsqueeze(1) for tensor in ours]


@dataclass(frozen=True)
class Kernel(Transform):
    """Kernels [O, I, K, 1] become [O, I, K]."""

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [tensor.squeeze(-1) for tensor in theirs]

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [tensor.unsqueeze(-1) for tensor in ours]


@dataclass(frozen=True)
class TwoBiases(Transform):
    """A bias [O] and another one [1, O, 1, 1] become their sum."""

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        bias, other = theirs
        return [bias + other.flatten()]

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        (bias,) = ours
        return [bias, bias.new_zeros(1, len(bias), 1, 1)]


def sequence_rules() -> tuple[Rule, ...]:
    """Names of all these encoders."""
    rules: list[Rule] = []
    for direction, stack, suffix in (
        (0, "rnn", ""),
        (1, "rnn", "_reverse"),
        (0, "rnn_forward", ""),
        (1, "rnn_backward", ""),
    ):
        ours, theirs = f"directions.{direction}.", f"encoder.{stack}."
        layer = f"encoder.layers.{{n}}.{ours}{{r}}_l0"
        rules.append(Rule((layer,), (f"{theirs}{{r}}_l{{n}}{suffix}",)))
    for ours, theirs in (("value", "conv"), ("gate", "gate")):
        first, later = f"encoder.layers.0.{ours}.", f"encoder.layers.{{n}}.{ours}."
        rules += (
            Rule((f"{first}weight",), (f"encoder.{theirs}_1.weight",), FirstKernel()),
            Rule(
                (f"{first}bias",),
                (f"encoder.{theirs}_1.bias", f"encoder.{theirs}_b1"),
                TwoBiases(),
            ),
            Rule((f"{later}weight",), (f"encoder.{theirs}.{{n-1}}.weight",), Kernel()),
            Rule(
                (f"{later}bias",),
                (f"encoder.{theirs}.{{n-1}}.bias", f"encoder.{theirs}_b.{{n-1}}"),
                TwoBiases(),
            ),
        )
    return tuple(rules)
