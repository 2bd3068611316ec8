"""Cross entropy of classes, and of a vocabulary too large for its logits to be held.

Shapes: K supervised positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tencentpretrain.types import IGNORE, Ratio

CHUNK_BYTES = 1 << 25
"""Size of the fp32 logits that are alive at once: 32 MiB stays near the caches."""


def class_loss(logits: Tensor, labels: Tensor) -> tuple[Ratio, Ratio]:
    """Summed cross entropy and summed accuracy of `labels` under `logits` [K, V].

    Args:
        logits: [K, V] scores.
        labels: [K] numbers of classes; or [K, C] their probabilities, those behind C being 0.
    """
    if labels.is_floating_point():
        count = labels.new_full((), len(labels))
        likelihoods = logits.float().log_softmax(-1)[:, : labels.shape[1]]
        correct = (logits.argmax(-1) == labels.argmax(-1)).sum()
        losses = -(labels * likelihoods).sum(-1)
        return Ratio(losses.sum(), count, losses.detach()), Ratio(correct, count)
    count = (labels != IGNORE).sum()
    losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    correct = (logits.argmax(-1) == labels).sum()
    return Ratio(losses.sum(), count, losses.detach()), Ratio(correct, count)


def vocabulary_loss(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    smoothing: float = 0.0,
    part: VocabularyPart | None = None,
) -> tuple[Ratio, Ratio]:
    """As `class_loss` of `states` [K, D] @ `weight` [V, D] + `bias` [V], without [K, V] in memory.

    The gradients are computed chunk by chunk along with the loss, while the logits of a chunk are
    there; the backward pass only scales them. Of the labels' probability, `smoothing` is spread
    over all entries. Where `weight` and `bias` are those of a `part` of the vocabulary, the loss is
    that of all of it.
    """
    options = torch.is_grad_enabled(), smoothing, part
    loss, correct, each = _VocabularyLoss.apply(states, weight, bias, labels, *options)  # type: ignore[no-untyped-call]
    count = (labels != IGNORE).sum()
    return Ratio(loss, count, each), Ratio(correct, count)


@dataclass(frozen=True)
class VocabularyPart:
    """Entries of a vocabulary that this process computes the logits of (Megatron-LM, section 3).

    Args:
        first: Number of the first of them.
        total: Entries of all processes together.
        group: Those processes.
    """

    first: int
    total: int
    group: dist.ProcessGroup

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` of all processes added up, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def highest(self, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The greatest of the `values` of all processes, and its place in the vocabulary."""
        most = values.clone()
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
        best = torch.where(values == most, places + self.first, self.total)
        dist.all_reduce(best, dist.ReduceOp.MIN, group=self.group)
        return most, best


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        trains: bool,
        smoothing: float,
        part: VocabularyPart | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = states.device.type
        dtype = torch.promote_types(states.dtype, weight.dtype)
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        exact = torch.promote_types(dtype, torch.float32)
        needs = [trains and needed for needed in ctx.needs_input_grad]
        grad_states = torch.empty_like(states) if needs[0] else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if needs[1] else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and needs[2] else None
        loss = torch.zeros((), dtype=exact, device=states.device)
        each = torch.empty(len(states), dtype=exact, device=states.device)
        correct = torch.zeros((), dtype=torch.int64, device=states.device)
        used_weight, used_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            for chunk in row_chunks(len(states), *weight.shape):
                inputs, kept = states[chunk].to(dtype), labels[chunk] != IGNORE
                logits = F.linear(inputs, used_weight, used_bias).to(exact)
                each[chunk], chunk_correct = _to_gradient(
                    logits, labels[chunk], kept, smoothing, part
                )
                loss += each[chunk].sum()
                correct += chunk_correct
                gradient = logits.to(dtype)
                if grad_states is not None:
                    grad_states[chunk] = (gradient @ used_weight).mul_(kept[:, None])
                if grad_weight is not None:
                    add_product(grad_weight, gradient.T, inputs * kept[:, None])
                if grad_bias is not None:
                    grad_bias += kept.to(exact) @ logits
            if part is not None and grad_states is not None:
                part.sum(grad_states)
        ctx.save_for_backward(grad_states, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(correct, each)
        return loss, correct, each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, grad), None, None, None, None


def scaled_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of states, weight and bias that the forward pass has saved, times `grad` []."""
    states, weight, bias = ctx.saved_tensors
    weight_dtype, bias_dtype = ctx.dtypes
    return (
        None if states is None else states.mul_(grad),
        None if weight is None else weight.mul_(grad).to(weight_dtype),
        None if bias is None else bias.mul_(grad).to(bias_dtype),
    )


def row_chunks(rows: int, vocabulary: int, width: int) -> list[slice]:
    """`rows` in as few equal parts as keep the logits of each within `CHUNK_BYTES`.

    They may be half as large as the weight [V, D] all the same: every part reads and writes the
    weight's gradient, which must cost little beside its own products.
    """
    most = max(CHUNK_BYTES // (4 * vocabulary), width // 2, 1)
    size = -(-rows // max(1, -(-rows // most)))
    return [slice(start, start + size) for start in range(0, rows, max(1, size))]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left` @ `right` to `total`, which may be of a higher precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _to_gradient(
    logits: Tensor, labels: Tensor, kept: Tensor, smoothing: float, part: VocabularyPart | None
) -> tuple[Tensor, Tensor]:
    """Losses [K], 0 of rows that are not `kept`, and correct answers [] of a chunk.

    In place, the rows of `logits` [K, V] become gradients of their losses, those not kept too.
    """
    index = labels.masked_fill(~kept, 0)[:, None]
    highest, best = logits.max(-1, keepdim=True)
    if part is not None:
        highest, best = part.highest(highest, best)
    correct = (best == index).squeeze(-1) & kept
    logits.sub_(highest)
    entries = logits.shape[-1] if part is None else part.total
    place, elsewhere = index, None
    if part is not None:
        place = index - part.first
        elsewhere = (place < 0) | (place >= logits.shape[-1])
        place = place.masked_fill(elsewhere, 0)
    wanted = logits.gather(-1, place)
    if elsewhere is not None:
        wanted.masked_fill_(elsewhere, 0.0)
    if smoothing:
        wanted = (1 - smoothing) * wanted + smoothing / entries * logits.sum(-1, keepdim=True)
    total = logits.exp_().sum(-1, keepdim=True)
    if part is not None:
        wanted, total = part.sum(torch.stack([wanted, total])).unbind()
    losses = total.log() - wanted
    logits.div_(total)
    if smoothing:
        logits.sub_(smoothing / entries)
    share = torch.full_like(wanted, smoothing - 1.0)
    logits.scatter_add_(-1, place, share if elsewhere is None else share.masked_fill(elsewhere, 0))
    return losses.squeeze(-1).masked_fill(~kept, 0.0), correct.sum()
