"""Multi-head attention (Vaswani et al., 2017, section 3.2).

Shapes: B rows, S positions, T valid positions, D width, N heads, H width of a head.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tencentpretrain.layers.dropout import draw_mask, dropout
from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.mask import AttentionMask

CPU_DENSE_LENGTH: Final = 512
"""Up to this many keys, batched products beat torch's CPU flash kernel, twofold in the backward."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, rate: float = 0.0
) -> Tensor:
    """Attention of `query` [B, N, S_q, H] over `key` and `value` [B, N, S_k, H]: [B, N, S_q, H].

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        mask: What may be seen.
        rate: Dropout rate of the attention probabilities; 0 outside training.
    """
    is_short = rate > 0 or key.shape[2] <= CPU_DENSE_LENGTH
    if query.device.type == "cpu" and is_short and not torch.compiler.is_compiling():
        bias = mask.bias(query.shape[1], key.shape[2], query.dtype)
        context: Tensor = _CpuAttention.apply(query, key, value, bias, rate)  # type: ignore[no-untyped-call]
        return context
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask.allowed, dropout_p=rate, is_causal=mask.is_causal
    )


def attend_densely(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, rate: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As `attend`, and the probabilities [B, N, S_q, S_k] before dropout, differentiably."""
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    allowed = mask.grid(key.shape[2], key.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    probabilities = torch.softmax(scores, dim=-1).to(value.dtype)
    return dropout(probabilities, rate, training=True) @ value, probabilities


class _CpuAttention(torch.autograd.Function):
    """Few passes over the scores, which are what costs time on a CPU beside the products.

    Only the probabilities before (P) and after (D) dropout are kept of the scores' size: with the
    gradient G of D, that of the scores is D * G - P * (sum over H of the output * its gradient).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, rate: float
    ) -> Tensor:
        ctx.scale = 1 / math.sqrt(query.shape[-1])
        shape = query.shape
        query, key, value = (
            pieces.reshape(-1, *pieces.shape[2:]) for pieces in (query, key, value)
        )
        with torch.autocast("cpu", enabled=False):
            scores = _scaled_product(query, key.transpose(1, 2), ctx.scale, bias)
            kept = torch.softmax(scores, dim=-1)
            dropped = kept * draw_mask(kept, rate) if rate > 0 else kept
            context = dropped.bmm(value)
        ctx.save_for_backward(query, key, value, kept, dropped, context)
        return context.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, kept, dropped, context = ctx.saved_tensors
        shape = grad.shape
        grad = grad.reshape(context.shape)
        grad_value = dropped.transpose(1, 2).bmm(grad)
        scores = grad.bmm(value.transpose(1, 2)).mul_(dropped)
        # In fp32: what follows is a difference of two numbers that are nearly equal.
        shared = (grad.float() * context.float()).sum(-1, keepdim=True).to(scores.dtype)
        scores.addcmul_(kept, shared, value=-1)
        grad_query = _scaled_product(scores, key, ctx.scale)
        grad_key = _scaled_product(scores.transpose(1, 2), query, ctx.scale)
        keys = (*shape[:2], *key.shape[1:])
        return grad_query.view(shape), grad_key.view(keys), grad_value.view(keys), None, None


def _scaled_product(
    left: Tensor, right: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """`scale` * `left` @ `right` + `bias` for batches of matrices, in one call."""
    added = left.new_zeros(()) if bias is None else bias
    return torch.baddbmm(added, left, right, beta=0 if bias is None else 1, alpha=scale)


class SelfAttention(nn.Module):
    """Attention of a sequence over itself, with projections of queries, keys, values and output."""

    def __init__(self, hidden: int, heads: int, *, rate: float, has_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.rate = rate
        self.query = nn.Linear(hidden, hidden, bias=has_bias)
        self.key = nn.Linear(hidden, hidden, bias=has_bias)
        self.value = nn.Linear(hidden, hidden, bias=has_bias)
        self.output = nn.Linear(hidden, hidden, bias=has_bias)

    def forward(
        self, states: Tensor, grid: HeadGrid, mask: AttentionMask, is_wanted: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over flat valid positions.

        Args:
            states: [T, D], the valid positions.
            grid: Where their heads lie.
            mask: What each position may see.
            is_wanted: Whether to return the probabilities [B, N, S, S], too.
        """
        query, key, value = (
            grid.split(project(states)) for project in (self.query, self.key, self.value)
        )
        rate = self.rate if self.training else 0.0
        probabilities = None
        if is_wanted:
            context, probabilities = attend_densely(query, key, value, mask, rate)
        else:
            context = attend(query, key, value, mask, rate)
        return self.output(grid.merge(context)), probabilities
