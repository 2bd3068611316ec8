"""What a teacher says at the supervised positions, and how a student's answer is compared with it.

Shapes: K supervised positions, N of them in a chunk, E width before the output layer, V entries of
the student's output layer, T entries that the teacher tells of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.distill.outcomes import Normalised, Outcomes, Scratch
from tencentpretrain.types import Batch, ModelOutput

TEACHING: Final = "teaching"
"""Name of what a teacher adds to `Batch.extras`: a `Teaching` for each target by name."""


class Compared:
    """A chunk of both answers.

    Args:
        outcomes: The distributions, tempered.
        rest: Entries of the student's output layer behind those that are compared.
    """

    def __init__(self, outcomes: Outcomes, rest: int) -> None:
        self.outcomes = outcomes
        self.rest = rest

    def spread(self, gradient: Tensor) -> Tensor:
        """Gradient [N, V] with respect to the student's logits, of that for the outcomes."""
        compared = self._of_entries(gradient)
        return F.pad(compared, (0, self.rest)) if self.rest else compared

    def _of_entries(self, gradient: Tensor) -> Tensor:
        """The same for entries of the vocabulary, of that for the outcomes."""
        return gradient


class Answer(ABC):
    """What a teacher says at all supervised positions."""

    @property
    @abstractmethod
    def knows_all(self) -> bool:
        """Whether the probability of every entry is known."""

    @property
    @abstractmethod
    def knows_logits(self) -> bool:
        """Whether logits are known, or only probabilities."""

    @abstractmethod
    def part(self, chunk: slice, kept: Tensor | None = None) -> Answer:
        """What is said at the positions `chunk`, as far as it takes products of matrices.

        Args:
            chunk: N positions.
            kept: [N] bool; other rows may hold anything, and become finite. None if all are.
        """

    @abstractmethod
    def compare(self, student: Normalised, temperature: float, scratch: Scratch) -> Compared:
        """Compare with the student; for what `part` gave.

        Args:
            student: Its distribution over the V entries, at least in fp32; written over, but for
                `plain`.
            temperature: What logits are divided by.
            scratch: Memory for what is computed.
        """


@dataclass(frozen=True)
class StatesAnswer(Answer):
    """States and an output layer; or, without one, logits.

    Args:
        states: [K, E], or logits [K, T].
        weight: [T, E].
        bias: [T].
        entries: Only so many entries are compared, those that stand for something; both output
            layers may have more rows.
    """

    states: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    entries: int | None = None
    knows_all = True
    knows_logits = True

    def part(self, chunk: slice, kept: Tensor | None = None) -> StatesAnswer:
        logits = self.states[chunk]
        if kept is not None:
            logits = logits.masked_fill(~kept[:, None], 0.0)
        if self.weight is not None:
            logits = F.linear(logits.to(self.weight.dtype), self.weight, self.bias)
        return StatesAnswer(logits[:, : self.entries])

    def compare(self, student: Normalised, temperature: float, scratch: Scratch) -> Compared:
        vocabulary = student.log.shape[-1]
        size = min(self.states.shape[-1], vocabulary)
        softened = _soften(student, size, temperature, scratch)
        logits = scratch("teacher logits", softened.log.shape).copy_(self.states[:, :size])
        if temperature != 1:
            logits.div_(temperature)
        teacher = Normalised.of(logits, scratch("teacher", logits.shape))
        return Compared(Outcomes.of(teacher, softened, has_logits=True), vocabulary - size)


def _soften(student: Normalised, size: int, temperature: float, scratch: Scratch) -> Normalised:
    """The distribution over the first entries with a temperature."""
    if temperature == 1 and size == student.log.shape[-1]:
        return student
    cut = student.log[:, :size]
    logits = torch.div(cut, temperature, out=scratch("softened logits", cut.shape))
    softened = Normalised.of(logits, scratch("softened", cut.shape))
    return softened._replace(level=softened.level + student.level / temperature)


@dataclass(frozen=True)
class TopAnswer(Answer):
    """The likeliest entries only, as stored; all others together are one more outcome.

    Args:
        ids: [K, T] entries of the vocabulary.
        scores: [K, T] their log-probabilities without a temperature.
        rest: [K] log-probability of all others together; read where there are others.
        entries: Size of the vocabulary.
    """

    ids: Tensor
    scores: Tensor
    rest: Tensor
    entries: int
    knows_logits = False

    @property
    def knows_all(self) -> bool:
        return self.ids.shape[-1] == self.entries

    def part(self, chunk: slice, kept: Tensor | None = None) -> TopAnswer:
        return replace(self, ids=self.ids[chunk], scores=self.scores[chunk], rest=self.rest[chunk])

    def compare(self, student: Normalised, temperature: float, scratch: Scratch) -> Compared:
        # The mass of the rest is known without a temperature only.
        assert temperature == 1 or self.knows_all
        vocabulary, ids = student.log.shape[-1], self.ids
        softened = _soften(student, self.entries, temperature, scratch)
        students = [softened.log.gather(1, ids)]
        teachers = [self.scores.to(softened.log.dtype)]
        others = softened.log.copy_(softened.plain).scatter_(1, ids, 0.0)
        mass = None
        if not self.knows_all:
            mass = others.sum(-1, keepdim=True).clamp_(min=torch.finfo(others.dtype).tiny)
            students.append(mass.log())
            teachers.append(self.rest[:, None].to(others.dtype))
        elif temperature != 1:
            teachers[0] = (teachers[0] / temperature).log_softmax(-1)
        theirs, ours = (_of_logs(torch.cat(parts, -1)) for parts in (teachers, students))
        outcomes = Outcomes.of(theirs, ours, has_rest=mass is not None)
        return _Bucketed(outcomes, vocabulary - self.entries, ids, others, mass)


def _of_logs(log: Tensor) -> Normalised:
    """The distribution with the log-probabilities `log` [N, V]."""
    return Normalised(log, log.exp(), log.new_zeros(len(log), 1))


class _Bucketed(Compared):
    """Outcomes are the entries `ids` and, where it has a `mass` [N, 1], one for all `others`."""

    def __init__(
        self,
        outcomes: Outcomes,
        rest: int,
        ids: Tensor,
        others: Tensor,
        mass: Tensor | None,
    ) -> None:
        super().__init__(outcomes, rest)
        self.ids, self.others, self.mass = ids, others, mass

    def _of_entries(self, gradient: Tensor) -> Tensor:
        told = self.ids.shape[1]
        if self.mass is not None:
            # What moves the logit of all others together moves each by its share in them.
            self.others.mul_(gradient[:, told:] / self.mass)
        return self.others.scatter_(1, self.ids, gradient[:, :told])


@dataclass(frozen=True)
class Teaching:
    """What a teacher says of a batch to one target.

    Args:
        answer: At the supervised positions.
        output: Its inner layers; None where none are wanted, or they are not known.
    """

    answer: Answer
    output: ModelOutput | None = None


def add_teaching(batch: Batch, found: Mapping[str, Teaching]) -> Batch:
    """`batch` with what teachers say, by the names of targets."""
    earlier = batch.extras.get(TEACHING, {})
    return replace(batch, extras=batch.extras | {TEACHING: earlier | found})
