"""Cross entropy of classes, and of a vocabulary too large for its logits to be held.

Shapes: K supervised positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tencentpretrain.types import IGNORE, Ratio

CHUNK_BYTES = 1 << 25
"""Size of the fp32 logits that are alive at once: 32 MiB stays near the caches."""


def class_loss(logits: Tensor, labels: Tensor) -> tuple[Ratio, Ratio]:
    """Summed negative log-likelihood and summed accuracy of `labels` [K] under `logits` [K, V]."""
    count = (labels != IGNORE).sum()
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    return Ratio(loss, count), Ratio((logits.argmax(-1) == labels).sum(), count)


def vocabulary_loss(
    states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> tuple[Ratio, Ratio]:
    """As `class_loss` of `states` [K, D] @ `weight` [V, D] + `bias` [V], without [K, V] in memory.

    The gradients are computed chunk by chunk along with the loss, while the logits of a chunk are
    there; the backward pass only scales them.
    """
    loss, correct = _VocabularyLoss.apply(states, weight, bias, labels)  # type: ignore[no-untyped-call]
    count = (labels != IGNORE).sum()
    return Ratio(loss, count), Ratio(correct, count)


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs = ctx.needs_input_grad
        grad_states = torch.empty_like(states) if needs[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None
        grad_bias = (
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs[2] else None
        )
        loss = torch.zeros((), dtype=torch.float32, device=states.device)
        correct = torch.zeros((), dtype=torch.int64, device=states.device)
        dtype = torch.promote_types(states.dtype, weight.dtype)
        if torch.is_autocast_enabled(states.device.type):
            dtype = torch.get_autocast_dtype(states.device.type)
        weight_used = weight.to(dtype)
        rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        for start in range(0, states.shape[0], rows):
            chunk = slice(start, start + rows)
            inputs = states[chunk].to(dtype)
            logits = F.linear(inputs, weight_used, None if bias is None else bias.to(dtype)).float()
            chunk_loss, chunk_correct = _to_gradient(logits, labels[chunk])
            loss += chunk_loss
            correct += chunk_correct
            gradient = logits.to(dtype)
            if grad_states is not None:
                grad_states[chunk] = gradient @ weight_used
            if grad_weight is not None:
                grad_weight.addmm_(
                    gradient.T, inputs
                ) if dtype == torch.float32 else grad_weight.add_(gradient.T @ inputs)
            if grad_bias is not None:
                grad_bias += logits.sum(0)
        ctx.save_for_backward(grad_states, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if states is None else states.mul_(grad),
            None if weight is None else weight.mul_(grad).to(weight_dtype),
            None if bias is None else bias.mul_(grad).to(bias_dtype),
            None,
        )


def _to_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss [] and correct answers [] of a chunk; `logits` [K, V] becomes its gradient in place."""
    ignored = labels == IGNORE
    index = labels.masked_fill(ignored, 0)[:, None]
    highest = logits.amax(-1, keepdim=True)
    picked = logits.gather(-1, index)
    correct = (picked >= highest).squeeze(-1) & ~ignored
    total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    losses = total.log() - (picked - highest)
    logits.div_(total).scatter_add_(-1, index, torch.full_like(picked, -1.0))
    logits.masked_fill_(ignored[:, None], 0.0)
    return losses.squeeze(-1).masked_fill(ignored, 0.0).sum(), correct.sum()
