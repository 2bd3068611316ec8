"""How far a student's distribution is from its teacher's, position by position.

All take flat positions, so that one that is not supervised is never in a sum. Each gives its
gradient in closed form beside its value: where a divergence is a sum over outcomes of
f(p, q), that with respect to the student's logits is flow - q * (sum of flow), flow = q df/dq.

Shapes: N positions, V outcomes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from tencentpretrain.config import ComponentConfig
from tencentpretrain.distill.outcomes import Outcomes, dot
from tencentpretrain.registry import Registry

Share = Annotated[float, Field(ge=0, le=1)]
Inner = Annotated[float, Field(gt=0, lt=1)]


class Measured(NamedTuple):
    """What a divergence says of each position.

    Args:
        values: [N].
        gradient: [N, V] of each value with respect to the student's logits, temperature included.
        details: Further figures [N] to report, by name.
    """

    values: Tensor
    gradient: Tensor
    details: dict[str, Tensor]


class Divergence(ABC):
    """A measure of two distributions that is 0 where they are equal.

    Args:
        config: An instance of the class's `Config`.
    """

    needs_all: ClassVar[bool] = False
    """Whether the teacher must tell the probability of every outcome."""
    needs_logits: ClassVar[bool] = False
    """Whether probabilities are not enough."""
    details: ClassVar[tuple[str, ...]] = ()
    """Names of the further figures."""

    class Config(ComponentConfig):
        pass

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def measure(self, outcomes: Outcomes) -> Measured:
        """Values and gradients; `outcomes.gap` and `outcomes.spare` may be written over."""


DIVERGENCES: Registry[Divergence] = Registry("divergence", "tencentpretrain.distill")


def divergence_of(
    student: Tensor, teacher: Tensor, divergence: Divergence, temperature: float = 1.0
) -> Tensor:
    """Values [N] of `divergence` for logits [N, V], differentiable in those of the student."""
    values: Tensor = _Values.apply(student, teacher, divergence, temperature)  # type: ignore[no-untyped-call]
    return values


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, divergence: Divergence, temperature: float
    ) -> Tensor:
        measured = divergence.measure(Outcomes.of_logits(teacher, student, temperature))
        ctx.save_for_backward(measured.gradient.div_(temperature).to(student.dtype))
        return measured.values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient.dtype), None, None, None


def _through_softmax(flow: Tensor, student: Tensor) -> Tensor:
    """Gradient with respect to logits; `flow` [N, V] is written over."""
    return flow.addcmul_(student, flow.sum(-1, keepdim=True), value=-1)


def _forward_gradient(outcomes: Outcomes, out: Tensor) -> Tensor:
    """That of the forward divergence, q - p."""
    return torch.sub(outcomes.student, outcomes.teacher, out=out)


def _reverse_gradient(outcomes: Outcomes) -> Tensor:
    """That of the reverse divergence, q (log q - log p - RKL), in the place of the gap."""
    return outcomes.gap.add_(outcomes.rkl[:, None]).mul_(outcomes.student).neg_()


@DIVERGENCES.register("fkl")
class ForwardKl(Divergence):
    """Forward Kullback-Leibler divergence, sum of p log(p / q) (Hinton et al., 2015)."""

    def measure(self, outcomes: Outcomes) -> Measured:
        return Measured(outcomes.fkl, _forward_gradient(outcomes, outcomes.gap), {})


@DIVERGENCES.register("rkl")
class ReverseKl(Divergence):
    """Reverse Kullback-Leibler divergence, sum of q log(q / p) (Gu et al., 2024, MiniLLM)."""

    def measure(self, outcomes: Outcomes) -> Measured:
        return Measured(outcomes.rkl, _reverse_gradient(outcomes), {})


def blend(outcomes: Outcomes, forward: Tensor, reverse: Tensor) -> tuple[Tensor, Tensor]:
    """Values and gradient of forward and reverse divergence with weights [N] or []."""
    values = forward * outcomes.fkl + reverse * outcomes.rkl
    # forward (q - p) - reverse q (gap + RKL), in the place of the gap
    level = forward - reverse * outcomes.rkl
    gradient = outcomes.gap.mul_(-reverse[..., None]).add_(level[:, None]).mul_(outcomes.student)
    return values, gradient.addcmul_(outcomes.teacher, forward[..., None], value=-1)


@DIVERGENCES.register("mix")
class Mix(Divergence):
    """A fixed mixture of forward and reverse divergence."""

    class Config(ComponentConfig):
        forward: Share = 0.5
        """Weight of the forward divergence; the reverse one has the rest."""

    def measure(self, outcomes: Outcomes) -> Measured:
        forward = outcomes.fkl.new_tensor(self.config.forward)
        return Measured(*blend(outcomes, forward, 1 - forward), {})


@DIVERGENCES.register("jsd")
class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence (Agarwal et al., 2024, GKD, equation 1).

    beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.
    """

    class Config(ComponentConfig):
        beta: Inner = 0.5
        """Share of the teacher in the mixture that both are compared with."""

    def measure(self, outcomes: Outcomes) -> Measured:
        beta, gap = self.config.beta, outcomes.gap
        # [N, V] log(m / q)
        mixed = _log_mixture(outcomes, beta)
        of_teacher = dot(outcomes.teacher, gap.sub_(mixed), out=gap)
        flow = mixed.mul_(outcomes.student)
        of_student = flow.sum(-1)
        flow.mul_(beta - 1)
        values = beta * of_teacher - (1 - beta) * of_student
        return Measured(values, _through_softmax(flow, outcomes.student), {})


def _log_mixture(outcomes: Outcomes, share: float) -> Tensor:
    """log(share e^gap + 1 - share) [N, V], which never overflows; in the spare memory."""
    mixed = torch.add(outcomes.gap, math.log(share), out=outcomes.spare)
    return torch.logaddexp(mixed, mixed.new_tensor(math.log1p(-share)), out=mixed)


class _Skewed(Divergence):
    class Config(ComponentConfig):
        skew: Inner = 0.1
        """Share of the first distribution that is mixed into the second."""


@DIVERGENCES.register("skew_fkl")
class SkewForwardKl(_Skewed):
    """KL(p || skew p + (1 - skew) q) (Ko et al., 2024, DistiLLM, section 3.1)."""

    def measure(self, outcomes: Outcomes) -> Measured:
        skew = self.config.skew
        mixed, gap = _log_mixture(outcomes, skew), outcomes.gap
        values = dot(outcomes.teacher, gap.sub_(mixed), out=gap)
        flow = mixed.neg_().exp_().mul_(outcomes.teacher).mul_(skew - 1)
        return Measured(values, _through_softmax(flow, outcomes.student), {})


@DIVERGENCES.register("skew_rkl")
class SkewReverseKl(_Skewed):
    """KL(q || skew q + (1 - skew) p) (Ko et al., 2024, DistiLLM, section 3.1)."""

    def measure(self, outcomes: Outcomes) -> Measured:
        skew = self.config.skew
        mixed, gap = _log_mixture(outcomes, 1 - skew), outcomes.gap
        values = -dot(outcomes.student, mixed, out=gap)
        # df/dq = log(q / m) + 1 - skew q / m
        slope = torch.neg(mixed, out=gap).exp_().mul_(-skew).add_(1).sub_(mixed)
        return Measured(
            values, _through_softmax(slope.mul_(outcomes.student), outcomes.student), {}
        )


@DIVERGENCES.register("tv")
class TotalVariation(Divergence):
    """Total variation distance, half the sum of |p - q| (Wen et al., 2023, f-distill)."""

    def measure(self, outcomes: Outcomes) -> Measured:
        values = distances(outcomes) / 2
        flow = outcomes.gap.sign_().mul_(outcomes.student).mul_(-0.5)
        return Measured(values, _through_softmax(flow, outcomes.student), {})


@DIVERGENCES.register("mse")
class LogitError(Divergence):
    """Mean over the vocabulary of the squared difference of logits (Ba and Caruana, 2014)."""

    needs_logits = True

    def measure(self, outcomes: Outcomes) -> Measured:
        assert outcomes.level is not None
        difference = outcomes.gap.add_(outcomes.level)
        count = difference.shape[-1]
        values = dot(difference, difference, out=outcomes.spare) / count
        return Measured(values, difference.mul_(-2 / count), {})


def distances(outcomes: Outcomes) -> Tensor:
    """Sum of |p - q| [N], twice the total variation; uses the spare memory."""
    difference = torch.sub(outcomes.teacher, outcomes.student, out=outcomes.spare)
    return difference.abs_().sum(-1)
