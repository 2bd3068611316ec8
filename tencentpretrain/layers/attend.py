"""The products of attention: the fastest way for the device that the states are on.

Shapes: B rows, S positions, N heads of queries, K heads of keys and values, H width of a head.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tencentpretrain.layers.dropout import draw_mask, dropout
from tencentpretrain.layers.mask import AttentionMask

CPU_DENSE_LENGTH: Final = 512
"""Up to this many keys, batched products beat torch's CPU flash kernel, twofold in the backward."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    rate: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention of `query` [B, N, S_q, H] over `key` and `value` [B, K, S_k, H]: [B, N, S_q, H].

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        mask: What may be seen.
        rate: Dropout rate of the attention probabilities; 0 outside training.
        scale: Factor of the scores; None is 1 / sqrt(H).
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    rows, heads, length = query.shape[:3]
    keys, groups = key.shape[2], heads // key.shape[1]
    is_short = rate > 0 or keys <= CPU_DENSE_LENGTH or length == 1
    if query.device.type == "cpu" and is_short and not torch.compiler.is_compiling():
        shape = query.shape
        if groups > 1 and length == 1 and mask.scores is None:
            # The queries that share a head of keys become rows, and no keys are copied.
            query, heads = query.reshape(rows, -1, groups, shape[3]), key.shape[1]
        elif groups > 1:
            key, value = (pieces.repeat_interleave(groups, 1) for pieces in (key, value))
        bias = mask.bias(rows, heads, keys, query.dtype)
        context: Tensor = _CpuAttention.apply(query, key, value, bias, rate, scale)  # type: ignore[no-untyped-call]
        return context.view(shape)
    added, is_causal = mask.allowed, mask.is_causal
    if mask.scores is not None:
        added, is_causal = mask.added(keys, query.dtype, query.device), False
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=added,
        dropout_p=rate,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=groups > 1,
    )


def attend_densely(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    rate: float = 0.0,
    scale: float | None = None,
    earlier: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `attend`, and what only this way shows, differentiably.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        mask: What may be seen.
        rate: Dropout rate of the attention probabilities.
        scale: Factor of the scores; None is 1 / sqrt(H).
        earlier: Scores [B, N, S_q, S_k] of the layer before, added to these (He et al., 2021,
            RealFormer, equation 4).

    Returns:
        The context, the probabilities [B, N, S_q, S_k] before dropout, the scores before the mask.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    groups = query.shape[1] // key.shape[1]
    key, value = (pieces.repeat_interleave(groups, 1) for pieces in (key, value))
    scores = (query * scale) @ key.transpose(-2, -1)
    if mask.scores is not None:
        scores = scores + mask.scores
    if earlier is not None:
        scores = scores + earlier
    allowed, seen = mask.grid(key.shape[2], key.device), scores
    if allowed is not None:
        seen = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    probabilities = torch.softmax(seen, dim=-1).to(value.dtype)
    return dropout(probabilities, rate, training=True) @ value, probabilities, scores


class _CpuAttention(torch.autograd.Function):
    """Few passes over the scores, which are what costs time on a CPU beside the products.

    Only the probabilities before (P) and after (D) dropout are kept of the scores' size: with the
    gradient G of D, that of the scores is D * G - P * (sum over H of the output * its gradient).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        rate: float,
        scale: float,
    ) -> Tensor:
        ctx.rate, ctx.scale = rate, scale
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
        scores = grad.bmm(value.transpose(1, 2))
        if ctx.rate > 0:
            # In fp32: what follows is a difference of two numbers that are nearly equal.
            shared = (grad.float() * context.float()).sum(-1, keepdim=True).to(scores.dtype)
            scores.mul_(dropped).addcmul_(kept, shared, value=-1)
        else:
            # A private name, but the only one of the kernel that torch's own softmax goes back by.
            scores = torch._softmax_backward_data(scores, kept, -1, scores.dtype)
        grad_query = _scaled_product(scores, key, ctx.scale)
        grad_key = _scaled_product(scores.transpose(1, 2), query, ctx.scale)
        keys = (*shape[:2], *key.shape[1:])
        # A bias that is learned has a score for every row and head.
        grad_bias = scores if ctx.needs_input_grad[3] else None
        grads = grad_query.view(shape), grad_key.view(keys), grad_value.view(keys)
        return *grads, grad_bias, None, None


def _scaled_product(
    left: Tensor, right: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """`scale` * `left` @ `right` + `bias` for batches of matrices, in one call."""
    added = left.new_zeros(()) if bias is None else bias
    return torch.baddbmm(added, left, right, beta=0 if bias is None else 1, alpha=scale)
