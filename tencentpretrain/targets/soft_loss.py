"""Hard and soft loss of a student in one pass over its output layer, chunk by chunk.

Shapes: K supervised positions, N of them in a chunk, E width before the output layer, V entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tencentpretrain.distill.answers import Answer
from tencentpretrain.distill.divergences import Divergence
from tencentpretrain.distill.outcomes import Normalised, Scratch
from tencentpretrain.targets.cross_entropy import add_product, row_chunks, scaled_gradients
from tencentpretrain.types import IGNORE, Ratio

BLOCK_BYTES = 1 << 21
"""Size of a block of logits on a CPU: a dozen passes over it cost as much as three over memory."""
FIGURES = ("ce", "divergence", "fkl", "rkl", "soft_ce")
"""What is summed for every divergence; `soft_ce` is `fkl` with the entropy of the teacher."""


class Head(NamedTuple):
    """The student's output layer: weight [V, E] and bias [V]. Without one, states are logits."""

    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Terms:
    """What the loss of a position is: (1 - ratio) * cross entropy + ratio * factor * divergence.

    Args:
        divergence: Of the student from its teacher.
        ratio: Share of the soft loss.
        temperature: What the logits of both are divided by in the divergence.
        factor: Of the divergence.
        smoothing: Part of a label's probability that is spread over all entries.
    """

    divergence: Divergence
    ratio: float = 0.5
    temperature: float = 1.0
    factor: float = 1.0
    smoothing: float = 0.0

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what is summed beside the loss."""
        return (*FIGURES, *self.divergence.details, "accuracy")


def distillation_loss(
    states: Tensor, head: Head, labels: Tensor, answer: Answer, terms: Terms
) -> tuple[Ratio, dict[str, Ratio]]:
    """The loss of `states` [K, E] and its figures, without [K, V] of either model in memory.

    As in `vocabulary_loss`, gradients are computed along with the loss, while the logits of a chunk
    are there. None go to the teacher. Rows whose label is `IGNORE` count for nothing, whatever they
    hold.
    """
    options = labels, answer, terms, torch.is_grad_enabled()
    loss, sums = _Distillation.apply(states, *head, *options)  # type: ignore[no-untyped-call]
    count = (labels != IGNORE).sum()
    figures = dict(zip(terms.figures, sums.unbind(), strict=True))
    return Ratio(loss, count), {name: Ratio(total, count) for name, total in figures.items()}


class _OutputLayer:
    """The student's output layer in the type of the pass, and its gradients in an exact one.

    Args:
        states: [K, E], or logits where there is no layer.
        head: The layer.
        needs: Whether gradients of states, weight and bias are needed.
    """

    def __init__(self, states: Tensor, head: Head, needs: list[bool]) -> None:
        weight, bias = head
        device, self.dtype = states.device.type, states.dtype
        if weight is not None:
            self.dtype = torch.promote_types(self.dtype, weight.dtype)
            if torch.is_autocast_enabled(device):
                self.dtype = torch.get_autocast_dtype(device)
        self.exact = exact = torch.promote_types(self.dtype, torch.float32)
        self.weight, self.bias = (None if t is None else t.to(self.dtype) for t in head)
        self.trains = any(needs)
        self.of_states = torch.empty_like(states) if needs[0] else None
        self.of_weight = self.of_bias = None
        if weight is not None and needs[1]:
            self.of_weight = torch.zeros_like(weight, dtype=exact)
        if bias is not None and needs[2]:
            self.of_bias = torch.zeros_like(bias, dtype=exact)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits [N, V] of `inputs` [N, E], which are of the type of the pass."""
        return inputs if self.weight is None else F.linear(inputs, self.weight, self.bias)

    def go_back(self, chunk: slice, kept: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Take the `gradient` [N, V] of logits back to `inputs`, which are 0 where not `kept`."""
        if self.of_states is not None:
            back = gradient if self.weight is None else gradient @ self.weight
            self.of_states[chunk] = back.mul_(kept[:, None])
        if self.of_weight is not None:
            add_product(self.of_weight, gradient.T, inputs)


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        labels: Tensor,
        answer: Answer,
        terms: Terms,
        trains: bool,
    ) -> tuple[Tensor, Tensor]:
        needs = [trains and needed for needed in ctx.needs_input_grad[:3]]
        layer = _OutputLayer(states, Head(weight, bias), needs)
        scratch = Scratch(layer.exact, states.device)
        sums = torch.zeros(len(terms.figures), dtype=layer.exact, device=states.device)
        width = states.shape[-1]
        vocabulary = width if weight is None else len(weight)
        with torch.autocast(states.device.type, enabled=False):
            for chunk in row_chunks(len(states), vocabulary, width):
                classes = labels[chunk]
                kept = classes != IGNORE
                inputs = states[chunk].to(layer.dtype).masked_fill(~kept[:, None], 0.0)
                logits, part = layer(inputs), answer.part(chunk, kept)
                for rows in _blocks(logits, layer.exact):
                    exact = logits[rows]
                    if exact.dtype != layer.exact:
                        exact = scratch("logits", exact.shape).copy_(exact)
                    one = _teach(exact, classes[rows], part.part(rows), terms, scratch)
                    sums += one.figures.where(kept[rows], 0.0).sum(-1)
                    if layer.trains:
                        logits[rows] = one.gradient
                    if layer.of_bias is not None:
                        layer.of_bias += kept[rows].to(layer.exact) @ one.gradient
                layer.go_back(chunk, kept, inputs, logits)
        ctx.save_for_backward(layer.of_states, layer.of_weight, layer.of_bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (weight, bias)]
        ctx.mark_non_differentiable(sums)
        soft = terms.ratio * terms.factor
        return (1 - terms.ratio) * sums[0] + soft * sums[1], sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, grad), *(None,) * 4


def _blocks(logits: Tensor, exact: torch.dtype) -> list[slice]:
    """Rows of `logits` [N, V] that are worked on together: on a CPU, what its caches hold."""
    rows, vocabulary = logits.shape
    most = rows if logits.is_cuda else BLOCK_BYTES // (vocabulary * exact.itemsize)
    size = max(1, most)
    return [slice(start, start + size) for start in range(0, rows, size)]


class _Taught(NamedTuple):
    """What is learned from a few rows: gradient [N, V] of the loss of each, and figures [F, N]."""

    gradient: Tensor
    figures: Tensor


def _teach(
    logits: Tensor, labels: Tensor, answer: Answer, terms: Terms, scratch: Scratch
) -> _Taught:
    """Rows whose label is `IGNORE` get finite numbers, too; `logits` are written over."""
    index = labels.masked_fill(labels == IGNORE, 0)[:, None]
    is_correct = logits.max(-1, keepdim=True).indices == index
    student = Normalised.of(logits, scratch("student", logits.shape))
    wanted = student.log.gather(-1, index)
    if terms.smoothing:
        mean = student.log.mean(-1, keepdim=True)
        wanted = (1 - terms.smoothing) * wanted + terms.smoothing * mean
    compared = answer.compare(student, terms.temperature, scratch)
    outcomes = compared.outcomes
    measured = terms.divergence.measure(outcomes)
    columns = [
        *(-wanted.squeeze(-1), measured.values),
        *(outcomes.fkl, outcomes.rkl, outcomes.cross_entropy),
        *(measured.details[name] for name in terms.divergence.details),
        is_correct.squeeze(-1).to(wanted.dtype),
    ]
    soft = terms.ratio * terms.factor / terms.temperature
    gradient = compared.spread(measured.gradient.mul_(soft))
    hard = 1 - terms.ratio
    if hard:
        gradient.add_(student.plain, alpha=hard)
        if terms.smoothing:
            gradient.sub_(hard * terms.smoothing / gradient.shape[-1])
        label = hard * (terms.smoothing - 1)
        gradient.scatter_add_(-1, index, torch.full_like(wanted, label))
    return _Taught(gradient, torch.stack(columns))
