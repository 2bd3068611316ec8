"""The distributions of teacher and student over the same outcomes, ready to be compared.

Shapes: N positions, V outcomes (entries of a vocabulary, or classes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

LOWEST: Final = -1e30
"""Stands for a logit of minus infinity: its probability is 0, and differences stay numbers."""


@dataclass(frozen=True)
class Outcomes:
    """Both distributions, in fp32 or fp64.

    Args:
        teacher: Probabilities p [N, V].
        student: Probabilities q [N, V].
        gap: log p - log q [N, V]. Whoever is given these outcomes may write over it.
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
    level: Tensor | None
    fkl: Tensor
    rkl: Tensor
    cross_entropy: Tensor
    has_rest: bool = False

    @classmethod
    def of(
        cls,
        log_teacher: Tensor,
        log_student: Tensor,
        level: Tensor | None = None,
        has_rest: bool = False,
    ) -> Self:
        """Outcomes of log-probabilities [N, V], both of which are overwritten."""
        gap = log_teacher - log_student
        teacher = log_teacher.exp_()
        cross_entropy = -torch.linalg.vecdot(teacher, log_student)
        student = log_student.exp_()
        fkl, rkl = torch.linalg.vecdot(teacher, gap), -torch.linalg.vecdot(student, gap)
        return cls(teacher, student, gap, level, fkl, rkl, cross_entropy, has_rest)

    @classmethod
    def of_logits(cls, teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Self:
        """Outcomes of logits [N, V], at least in fp32.

        What is minus infinity for one of them is left out for both.
        """
        is_out = torch.isneginf(teacher) | torch.isneginf(student)
        exact = torch.promote_types(student.dtype, torch.float32)
        scaled = [
            logits.to(exact).masked_fill(is_out, LOWEST) / temperature
            for logits in (teacher, student)
        ]
        level = scaled[0].logsumexp(-1, keepdim=True) - scaled[1].logsumexp(-1, keepdim=True)
        return cls.of(scaled[0].log_softmax(-1), scaled[1].log_softmax(-1), level)
