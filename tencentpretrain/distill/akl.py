"""Adaptive Kullback-Leibler divergence (Wu et al., 2025, COLING, arXiv:2404.02657).

Forward and reverse divergence, weighted at each position by where teacher and student differ: in
the head of the teacher's distribution or in its tail.

Shapes: N positions, V outcomes, K outcomes that may belong to the head.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from tencentpretrain.config import ComponentConfig, PositiveFloat
from tencentpretrain.distill.divergences import (
    DIVERGENCES,
    Divergence,
    ForwardKl,
    Measured,
    Share,
    blend,
    distances,
)
from tencentpretrain.distill.outcomes import Outcomes

HeadRule = Literal["official", "cover"]
FIRST: Final = 32
"""Outcomes that are looked at first; few positions of a trained teacher have larger heads."""


class Head(NamedTuple):
    """The likeliest outcomes of the teacher.

    Args:
        size: Number [N] of outcomes in the head.
        gap: Sum [N] of |p - q| over them.
    """

    size: Tensor
    gap: Tensor


def find_head(
    teacher: Tensor, student: Tensor, mass: float, rule: HeadRule, count: int | None = None
) -> Head:
    """Divide the outcomes, in falling order of p, where their running sum reaches `mass`.

    "official" is the published code: the outcome that makes the sum exceed `mass` is tail already,
    but the first one never. "cover" takes the fewest outcomes that have `mass` together.

    A vocabulary is not sorted: that costs several times the loss. Its likeliest entries are picked,
    and more of them where those do not have the mass, which is all that the device is asked for.

    Args:
        teacher: Probabilities p [N, V].
        student: Probabilities q [N, V].
        mass: Of the head.
        rule: Where the outcome that crosses it belongs.
        count: How many outcomes are picked first.
    """
    count = min(count or FIRST, teacher.shape[-1])
    top = teacher.topk(count)
    sums = top.values.cumsum(-1)
    inside = sums <= mass if rule == "official" else sums - top.values < mass
    inside[:, 0] = True
    gaps = (top.values - student.gather(1, top.indices)).abs_().masked_fill_(~inside, 0.0)
    head = Head(inside.sum(-1), gaps.sum(-1))
    if count < teacher.shape[-1]:
        larger = (sums[:, -1] <= mass).nonzero()[:, 0]
        if len(larger):
            more = find_head(teacher[larger], student[larger], mass, rule, 8 * count)
            head.size[larger], head.gap[larger] = more
    return head


@DIVERGENCES.register("akl")
class AdaptiveKl(Divergence):
    """Forward and reverse divergence, weighted by the gaps in the teacher's head and tail."""

    needs_all = True
    details = ("head_weight", "head_size", "head_gap", "tail_gap")

    class Config(ComponentConfig):
        mu: Annotated[float, Field(gt=0, le=1)] = 0.5
        """Probability of the head; 1 leaves no tail, which is the forward divergence."""
        head_rule: HeadRule = "official"
        """Where the outcome that crosses mu belongs: to the tail (official, as the published code)
        or to the head (cover)."""
        eps: PositiveFloat = 1e-12
        """Sum of |p - q| below which teacher and student count as equal."""
        tie_break: Share = 0.5
        """Weight of the forward divergence where they are equal."""

    def measure(self, outcomes: Outcomes) -> Measured:
        config, total = self.config, distances(outcomes)
        if config.mu >= 1:
            # A sum in fp32 may exceed 1 by its last bit, and would leave a tail.
            everything = torch.full_like(total, outcomes.teacher.shape[-1])
            details = torch.ones_like(total), everything, total, torch.zeros_like(total)
            named = dict(zip(self.details, details, strict=True))
            return ForwardKl(config).measure(outcomes)._replace(details=named)
        told = outcomes.teacher.shape[-1] - outcomes.has_rest
        pair = outcomes.teacher[:, :told], outcomes.student[:, :told]
        head = find_head(*pair, config.mu, config.head_rule)
        tail_gap = (total - head.gap).clamp_(min=0)
        is_equal = total < config.eps
        weight = head.gap / (head.gap + tail_gap).masked_fill(is_equal, 1.0)
        weight = weight.masked_fill(is_equal, config.tie_break)
        details = weight, head.size.to(total.dtype), head.gap, tail_gap
        named = dict(zip(self.details, details, strict=True))
        return Measured(*blend(outcomes, weight, 1 - weight), named)


@DIVERGENCES.register("akl_topk")
class TopAdaptiveKl(AdaptiveKl):
    """As akl, for teachers that tell a few probabilities only: all others are one tail outcome."""

    needs_all = False
