"""Divergences by name, written out plainly in torch, to compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tencentpretrain.config import decode
from tencentpretrain.distill.divergences import DIVERGENCES, Divergence

KEYS: dict[str, dict[str, Any]] = {
    "fkl": {},
    "rkl": {},
    "mix": {"forward": 0.3},
    "jsd": {"beta": 0.3},
    "skew_fkl": {"skew": 0.2},
    "skew_rkl": {"skew": 0.2},
    "tv": {},
    "mse": {},
}
"""Every divergence whose gradient is that of its value, with keys that are no special case."""


def divergence(name: str, **keys: Any) -> Divergence:
    return DIVERGENCES.build(decode(DIVERGENCES.config_class(name), {"name": name, **keys}))


def kl(one: Tensor, other: Tensor) -> Tensor:
    return (one * (one.log() - other.log())).sum(-1)


def plain(name: str, teacher: Tensor, student: Tensor) -> Tensor:
    """Values [N] for logits [N, V], with the keys in `KEYS`."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    return {
        "fkl": lambda: kl(p, q),
        "rkl": lambda: kl(q, p),
        "mix": lambda: 0.3 * kl(p, q) + 0.7 * kl(q, p),
        "jsd": lambda: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
        "skew_fkl": lambda: kl(p, 0.2 * p + 0.8 * q),
        "skew_rkl": lambda: kl(q, 0.2 * q + 0.8 * p),
        "tv": lambda: (p - q).abs().sum(-1) / 2,
        "mse": lambda: (teacher - student).square().mean(-1),
    }[name]()


def logits_of(rows: int, entries: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, entries, dtype=dtype) * 2
