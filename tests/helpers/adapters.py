"""Adapters on tiny modules and models, and a few steps of training them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tencentpretrain.config import decode
from tencentpretrain.train.optim import OPTIMIZERS
from tencentpretrain.wrappers import WRAPPERS, Wrapper
from tencentpretrain.wrappers.adapter import AdaptedLinear
from tencentpretrain.wrappers.factors import Update


def wrapper(name: str, seed: int = 0, **keys: Any) -> Wrapper:
    """A wrapper of which some keys are given."""
    return WRAPPERS.build(decode(WRAPPERS.config_class(name), {"name": name, **keys}), seed)


def update_of(name: str, **keys: Any) -> Update:
    """The kind of update that a wrapper learns."""
    found: Update = wrapper(name, **keys).config.update()  # type: ignore[attr-defined]
    return found


class Layers(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, inputs: int = 12, outputs: int = 10, seed: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(inputs, 14)
        self.second = nn.Linear(14, outputs, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(states)))
        return out

    def adapt(self, update: Update, seed: int = 0) -> Layers:
        for name in ("first", "second"):
            setattr(self, name, AdaptedLinear(getattr(self, name), update, seed, name))
        return self


def adapted(name: str, seed: int = 0, **keys: Any) -> Layers:
    """`Layers` with updates of a wrapper's kind."""
    return Layers().adapt(update_of(name, **({"rank": 4, "dropout": 0.0} | keys)), seed)


def train(model: nn.Module, steps: int, lr: float = 0.05, **keys: Any) -> Iterable[int]:
    """Steps of AdamW towards random answers; yields the number of those done."""
    choice = {"name": "adamw", "lr": lr, "weight_decay": 0.0, **keys}
    optimizer = OPTIMIZERS.build(decode(OPTIMIZERS.config_class("adamw"), choice))(model)
    draw = torch.Generator().manual_seed(5)
    states, answers = torch.randn(6, 12, generator=draw), torch.randn(6, 10, generator=draw)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (model(states) - answers).square().mean().backward()
        optimizer.step()
        yield step


def trained(model: nn.Module, steps: int = 3, **keys: Any) -> nn.Module:
    """`model` after some steps."""
    for _ in train(model, steps, **keys):
        pass
    return model


def factors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Copies of all parameters called `name`."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith(f".{name}")}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    assert left
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)
