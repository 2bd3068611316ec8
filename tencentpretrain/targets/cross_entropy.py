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

from tencentpretrain.layers.padding import ROW_MULTIPLE
from tencentpretrain.types import IGNORE, Ratio

CHUNK_BYTES = 1 << 25
"""Size of the logits that are multiplied at once: 32 MiB stays near the caches."""
CPU_BLOCK_BYTES = 1 << 22
"""Of those, what a core passes over several times, in fp32: 4 MiB stay in its caches."""


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

    @property
    def most(self) -> int:
        """Entries of the process that has most."""
        return -(-self.total // dist.get_world_size(self.group))

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` of all processes added up, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def highest(self, values: Tensor) -> Tensor:
        """The greatest of the `values` of all processes."""
        most = values.clone()
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
        return most


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
        each = torch.empty(len(states), dtype=exact, device=states.device)
        correct = torch.zeros((), dtype=exact, device=states.device)
        used_weight, used_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            # As many chunks on all processes, which talk about each.
            most = len(weight) if part is None else part.most
            for chunk in row_chunks(len(states), most, weight.shape[1], dtype.itemsize):
                inputs, kept = states[chunk].to(dtype), labels[chunk] != IGNORE
                gradient = F.linear(inputs, used_weight, used_bias)
                for block in _blocks(gradient) if part is None else [slice(None)]:
                    logits, seen = gradient[block].to(exact), kept[block]
                    slope, losses, hits = _gradient(logits, labels[chunk][block], smoothing, part)
                    each[chunk][block] = losses.masked_fill(~seen, 0.0)
                    correct += hits.masked_fill(~seen, 0.0).sum()
                    if grad_bias is not None:
                        grad_bias += seen.to(exact) @ slope
                    gradient[block] = slope
                if grad_states is not None:
                    grad_states[chunk] = (gradient @ used_weight).mul_(kept[:, None])
                if grad_weight is not None:
                    add_product(grad_weight, gradient.T, inputs * kept[:, None])
            if part is not None and grad_states is not None:
                part.sum(grad_states)
        ctx.save_for_backward(grad_states, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(correct, each)
        return each.sum(), correct, each

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


def row_chunks(rows: int, vocabulary: int, width: int, itemsize: int = 4) -> list[slice]:
    """`rows` in as few equal parts as keep the logits of each within `CHUNK_BYTES` or so.

    Parts are rounded up to whole tiles, where they hold more than one. They may be half as large as
    the weight [V, D] all the same: every part reads and writes the weight's gradient, which must
    cost little beside its own products.
    """
    most = max(CHUNK_BYTES // (itemsize * vocabulary), width // 2, 1)
    size = -(-rows // max(1, -(-rows // most)))
    if size > ROW_MULTIPLE:
        size = -(-size // ROW_MULTIPLE) * ROW_MULTIPLE
    return [slice(start, start + size) for start in range(0, rows, max(1, size))]


def _blocks(logits: Tensor) -> list[slice]:
    """Rows of `logits` [K, V] to go through together; on a GPU, where calls cost more, all."""
    rows, entries = logits.shape
    most = max(1, torch.get_num_threads() * CPU_BLOCK_BYTES // (4 * entries))
    size = most if logits.device.type == "cpu" else max(1, rows)
    return [slice(start, start + size) for start in range(0, rows, size)]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left` @ `right` to `total`, which may be of a higher precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _gradient(
    logits: Tensor, labels: Tensor, smoothing: float, part: VocabularyPart | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [K, V] of the losses, the losses [K], and whether the answers [K] are correct.

    The `logits` [K, V] are overwritten. Where n entries are the highest alike, as happens in bf16,
    each is correct to 1/n. Rows without a label get the values of some label.
    """
    place, elsewhere = labels.clamp(min=0)[:, None], None
    if part is not None:
        place = place - part.first
        elsewhere = (place < 0) | (place >= logits.shape[-1])
        place = place.masked_fill(elsewhere, 0)
    wanted, highest = logits.gather(-1, place), logits.amax(-1, keepdim=True)
    gradient = torch.softmax(logits, -1)
    # The highest probability is 1 / sum(exp(logits - highest)); one kernel has done the rest.
    norm = highest - gradient.amax(-1, keepdim=True).log()
    mean = logits.mean(-1, keepdim=True) if smoothing else torch.zeros_like(norm)
    if part is not None and elsewhere is not None:
        wanted.masked_fill_(elsewhere, 0.0)
        highest = part.highest(highest)
        total, wanted, mean = part.sum(
            torch.stack([(norm - highest).exp_(), wanted, mean * logits.shape[-1] / part.total])
        ).unbind()
        total = total.log_().add_(highest)
        gradient.mul_((norm - total).exp_())
        norm = total
    ties = logits.eq_(highest).sum(-1, keepdim=True)
    ties = ties if part is None else part.sum(ties)
    losses = norm - (1 - smoothing) * wanted - smoothing * mean
    if smoothing:
        gradient.sub_(smoothing / (logits.shape[-1] if part is None else part.total))
    share = torch.full_like(wanted, smoothing - 1.0)
    gradient.scatter_add_(
        -1, place, share if elsewhere is None else share.masked_fill(elsewhere, 0)
    )
    correct = (wanted == highest) / ties
    return gradient, losses.squeeze(-1), correct.squeeze(-1)
