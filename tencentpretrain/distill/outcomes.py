"""The distributions of teacher and student over the same outcomes, ready to be compared.

Shapes: N positions, V outcomes (entries of a vocabulary, or classes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

LOWEST: Final = -1e30
"""Stands for a logit of minus infinity: its probability is 0, and differences stay numbers."""


class Scratch:
    """Memory that one block of positions after another takes.

    On a CPU, new memory of such a size comes in pages that cost more than what is computed in them.

    Args:
        dtype: Of the numbers in it.
        device: Where it is.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: torch.Size) -> Tensor:
        """A contiguous tensor that holds anything: the memory that was given for `name` before."""
        kept = self._kept.get(name)
        if kept is None or kept.numel() < shape.numel():
            kept = torch.empty(shape.numel(), dtype=self.dtype, device=self.device)
            self._kept[name] = kept
        return kept[: shape.numel()].view(shape)


class Normalised(NamedTuple):
    """A distribution of each position.

    Args:
        log: Log-probabilities [N, V].
        plain: Probabilities [N, V].
        level: [N, 1] what is to be added to `log` to make it the logits.
    """

    log: Tensor
    plain: Tensor
    level: Tensor

    @classmethod
    def of(cls, logits: Tensor, out: Tensor | None = None) -> Self:
        """That of `logits` [N, V], which become `log`; `plain` is written into `out`."""
        # At once the level of large logits would round, and shift all of a row alike.
        highest = logits.amax(-1, keepdim=True)
        plain = torch.softmax(logits.sub_(highest), -1, out=out)
        # Of the likeliest outcome: no sum of exponentials is needed a second time.
        log_highest = plain.amax(-1, keepdim=True).log_()
        return cls(logits.add_(log_highest), plain, highest - log_highest)


@dataclass(frozen=True)
class Outcomes:
    """Both distributions, in fp32 or fp64.

    Args:
        teacher: Probabilities p [N, V].
        student: Probabilities q [N, V].
        gap: log p - log q [N, V]. Whoever is given these outcomes may write over it.
        spare: [N, V] holds nothing; whoever is given these outcomes may write into it.
        level: [N, 1] what is to be added to the gap to make it the difference of the logits; None
            where no logits are known.
        fkl: Sum of p (log p - log q) [N], the forward Kullback-Leibler divergence.
        rkl: Sum of q (log q - log p) [N], the reverse one.
        cross_entropy: Sum of -p log q [N]: `fkl` and the entropy of the teacher.
        has_rest: Whether the last outcome stands for all that the teacher does not tell apart.
    """

    teacher: Tensor
    student: Tensor
    gap: Tensor
    spare: Tensor
    level: Tensor | None
    fkl: Tensor
    rkl: Tensor
    cross_entropy: Tensor
    has_rest: bool = False

    @classmethod
    def of(
        cls,
        teacher: Normalised,
        student: Normalised,
        has_logits: bool = False,
        has_rest: bool = False,
    ) -> Self:
        """Outcomes of two distributions; `log` of both is written over.

        Args:
            teacher: p.
            student: q.
            has_logits: Whether both levels are known.
            has_rest: Whether the last outcome is all that is not told apart.
        """
        gap, spare = teacher.log.sub_(student.log), student.log
        cross_entropy = -dot(teacher.plain, student.log, out=spare)
        return cls(
            teacher.plain,
            student.plain,
            gap,
            spare,
            teacher.level - student.level if has_logits else None,
            dot(teacher.plain, gap, out=spare),
            -dot(student.plain, gap, out=spare),
            cross_entropy,
            has_rest,
        )

    @classmethod
    def of_logits(cls, teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Self:
        """Outcomes of logits [N, V], at least in fp32.

        What is minus infinity for one of them is left out for both.
        """
        is_out = torch.isneginf(teacher) | torch.isneginf(student)
        exact = torch.promote_types(student.dtype, torch.float32)
        theirs, ours = (
            Normalised.of(logits.to(exact).masked_fill(is_out, LOWEST) / temperature)
            for logits in (teacher, student)
        )
        return cls.of(theirs, ours, has_logits=True)


def dot(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Products [N] of the rows of `left` and `right` [N, V]; `out` [N, V] may be one of them."""
    return torch.mul(left, right, out=out).sum(-1)
