"""Optimisers, torch's own, over groups with and without weight decay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from tencentpretrain.config import (
    ComponentConfig,
    NonNegativeFloat,
    PositiveFloat,
    Probability,
)
from tencentpretrain.distributed.layout import is_shared
from tencentpretrain.registry import Registry


class OptimizerConfig(ComponentConfig):
    """What all optimisers have."""

    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay of matrices and tables; biases and norm gains never decay."""


class OptimizerFactory(ABC):
    """Makes a torch optimiser for a model."""

    class Config(OptimizerConfig):
        pass

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        """Optimiser over the parameters of `model` that require gradients.

        A module may have `rate_factors`: factors of the learning rate by the names of its own
        parameters.
        """
        factors = _rate_factors(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {
            (1.0, decays, shared): [] for decays in (True, False) for shared in (True, False)
        }
        for parameter in trained:
            # One pass takes parameters of one process, or those of several, not both.
            kind = factors.get(id(parameter), 1.0), parameter.dim() >= 2, is_shared(parameter)
            groups.setdefault(kind, []).append(parameter)
        return self.build(
            [
                {
                    "params": members,
                    "lr": self.config.lr * factor,
                    "weight_decay": self.config.weight_decay if decays else 0.0,
                }
                for (factor, decays, _), members in groups.items()
                if members
            ]
        )

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over parameter `groups`."""


def _rate_factors(model: nn.Module) -> dict[int, float]:
    """Factors of learning rates by the identity of parameters."""
    return {
        id(module.get_parameter(name)): factor
        for module in model.modules()
        for name, factor in getattr(module, "rate_factors", {}).items()
        if getattr(module, name, None) is not None
    }


OPTIMIZERS: Registry[OptimizerFactory] = Registry("optimiser", "tencentpretrain.train.optim")


@OPTIMIZERS.register("adamw")
class AdamW(OptimizerFactory):
    """AdamW (Loshchilov and Hutter, 2019), fused: one pass over all parameters."""

    class Config(OptimizerConfig):
        beta1: Probability = 0.9
        """Decay of the mean of the gradients."""
        beta2: Probability = 0.999
        """Decay of the mean of their squares."""
        eps: PositiveFloat = 1e-8
        """Added to the root of the mean square."""

    config: Config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self.config
        betas = (config.beta1, config.beta2)
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


@OPTIMIZERS.register("sgd")
class Sgd(OptimizerFactory):
    """Stochastic gradient descent with momentum."""

    class Config(OptimizerConfig):
        momentum: Probability = 0.9
        """Decay of the running gradient."""

    config: Config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        momentum = self.config.momentum
        # torch 2.11 has no fused SGD for parameters that lie on several processes.
        is_whole = not any(is_shared(p) for group in groups for p in group["params"])
        optimizer = torch.optim.SGD(
            groups, lr=self.config.lr, momentum=momentum, fused=is_whole, foreach=not is_whole
        )
        if momentum:
            # Where the first step is skipped, torch 2.11 would leave the memory of the running
            # gradient as it is allocated. From zero, the first step is the same as without.
            for parameter in (p for group in groups for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


@OPTIMIZERS.register("adafactor")
class Adafactor(OptimizerFactory):
    """Adafactor (Shazeer and Stern, 2018): second moments by row and column."""

    class Config(OptimizerConfig):
        beta2_decay: Annotated[float, Field(lt=0)] = -0.8
        """Exponent of the step in the decay of the second moments."""
        clip: PositiveFloat = 1.0
        """Root mean square that an update is clipped to."""

    config: Config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.Adafactor(
            groups, lr=config.lr, beta2_decay=config.beta2_decay, d=config.clip
        )
