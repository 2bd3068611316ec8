"""Adaptive Kullback-Leibler divergence (Wu et al., 2025, COLING, arXiv:2404.02657).

Forward and reverse divergence, weighted at each position by where teacher and student differ: in
the head of the teacher's distribution or in its tail.

Shapes: N positions, V outcomes, K outcomes that may belong to the head.
"""

from __future__ import annotations

import math
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
SMALLEST: Final = 4
"""Size of groups below which looking at groups costs more than it spares."""


class Head(NamedTuple):
    """The likeliest outcomes of the teacher.

    Args:
        size: Number [N] of outcomes in the head.
        gap: Sum [N] of |p - q| over them.
    """

    size: Tensor
    gap: Tensor


class HeadSearch:
    """Divides the outcomes, in falling order of p, where their running sum reaches `mass`.

    "official" is the published code: the outcome that makes the sum exceed `mass` is tail already,
    but the first one never. "cover" takes the fewest outcomes that have `mass` together.

    A vocabulary is not sorted: that costs several times the loss. Its likeliest entries are picked,
    and more of them where those do not have the mass. Whether they have is asked of the device at
    once but read in `finish`, so that a device that was given work in between does not wait.

    Args:
        teacher: Probabilities p [N, V].
        student: Probabilities q [N, V].
        mass: Of the head.
        rule: Where the outcome that crosses it belongs.
        count: How many outcomes are picked first.
    """

    def __init__(
        self,
        teacher: Tensor,
        student: Tensor,
        mass: float,
        rule: HeadRule,
        count: int | None = None,
    ) -> None:
        self._pair, self._mass, self._rule = (teacher, student), mass, rule
        self._count = min(count or FIRST, teacher.shape[-1])
        values, indices = top(teacher, self._count)
        sums = values.cumsum(-1)
        inside = sums <= mass if rule == "official" else sums - values < mass
        inside[:, 0] = True
        gaps = (values - student.gather(1, indices)).abs_().masked_fill_(~inside, 0.0)
        self._head = Head(inside.sum(-1), gaps.sum(-1))
        self._asked = None
        if self._count < teacher.shape[-1]:
            self._asked = Flags(sums[:, -1] <= mass)

    def finish(self) -> Head:
        """The head of each position."""
        rows = None if self._asked is None else self._asked.rows()
        if rows is not None and len(rows):
            teacher, student = (probabilities[rows] for probabilities in self._pair)
            more = HeadSearch(teacher, student, self._mass, self._rule, 8 * self._count).finish()
            self._head.size[rows], self._head.gap[rows] = more
        return self._head


class Flags:
    """Flags [N] on their way from a device, which works on meanwhile."""

    def __init__(self, flags: Tensor) -> None:
        self._device = flags.device
        self._flags = flags.to("cpu", non_blocking=True)
        self._sent = None
        if flags.is_cuda:
            self._sent = torch.cuda.current_stream(flags.device).record_event()

    def rows(self) -> Tensor:
        """Numbers of the rows whose flag is set."""
        if self._sent is not None:
            self._sent.synchronize()
        return self._flags.nonzero()[:, 0].to(self._device, non_blocking=True)


def top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `values.topk(count)`, several times as fast for long rows of few peaks.

    The `count` greatest of a row [V] lie in the `count` groups with the greatest maxima; so only
    the entries of those are compared one by one.

    Returns:
        The values [N, count] in falling order, and where in the rows they are.
    """
    rows, entries = values.shape
    size = math.isqrt(entries // count)
    if size < SMALLEST:
        return values.topk(count)
    groups = entries // size
    # Column g of [N, size, groups] is group g. Entries that are left over count as one group more.
    grid = values[:, : size * groups].unflatten(1, (size, groups))
    best = grid.amax(1).topk(count).indices[:, None].expand(rows, size, count)
    steps = torch.arange(size, device=values.device)[:, None] * groups
    places = (best + steps).flatten(1)
    rest = torch.arange(size * groups, entries, device=values.device).expand(rows, -1)
    places = torch.cat([places, rest], -1)
    found = values.gather(1, places).topk(count)
    return found.values, places.gather(1, found.indices)


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
        config = self.config
        if config.mu >= 1:
            total = distances(outcomes)
            # A sum in fp32 may exceed 1 by its last bit, and would leave a tail.
            everything = torch.full_like(total, outcomes.teacher.shape[-1])
            details = torch.ones_like(total), everything, total, torch.zeros_like(total)
            named = dict(zip(self.details, details, strict=True))
            return ForwardKl(config).measure(outcomes)._replace(details=named)
        told = outcomes.teacher.shape[-1] - outcomes.has_rest
        pair = outcomes.teacher[:, :told], outcomes.student[:, :told]
        search = HeadSearch(*pair, config.mu, config.head_rule)
        total = distances(outcomes)
        head = search.finish()
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
