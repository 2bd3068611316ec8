"""Multi-head attention (Vaswani et al., 2017, section 3.2).

Shapes: B rows, S positions, T valid positions, D width, N heads, H width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.layers.dropout import dropout
from tencentpretrain.layers.mask import AttentionMask
from tencentpretrain.layers.padding import pad, unpad
from tencentpretrain.types import Layout

CPU_DENSE_LENGTH = 512
"""Up to this length torch's batched products beat its CPU flash kernel, backward above all."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, rate: float = 0.0
) -> Tensor:
    """Output [B, N, S_q, H] of `query` [B, N, S_q, H] over keys and values [B, N, S_k, H].

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        mask: What may be seen.
        rate: Dropout rate of the attention probabilities; 0 outside training.
    """
    is_cpu = query.device.type == "cpu"
    if is_cpu and (rate > 0 or key.shape[2] <= CPU_DENSE_LENGTH) and not mask.is_causal:
        return attend_densely(query, key, value, mask, rate)[0]
    if is_cpu and rate > 0:
        length = query.shape[2]
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        return attend_densely(query, key, value, AttentionMask(causal), rate)[0]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask.allowed, dropout_p=rate, is_causal=mask.is_causal
    )


def attend_densely(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, rate: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As `attend`, and the probabilities [B, N, S_q, S_k] before dropout, which are held whole."""
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    if mask.bias is not None:
        scores = scores + mask.bias.to(scores.dtype)
    if mask.is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, torch.finfo(scores.dtype).min)
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return dropout(probabilities, rate, training=True) @ value, probabilities


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
        self, states: Tensor, layout: Layout, mask: AttentionMask, is_wanted: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over flat valid positions.

        Args:
            states: [T, D], the valid positions of `layout`.
            layout: The [B, S] grid that they come from.
            mask: What each position may see.
            is_wanted: Whether to return the probabilities [B, N, S, S], too.
        """
        query, key, value = (
            pad(project(states), layout).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        rate = self.rate if self.training else 0.0
        probabilities = None
        if is_wanted:
            context, probabilities = attend_densely(query, key, value, mask, rate)
        else:
            context = attend(query, key, value, mask, rate)
        return self.output(unpad(context.transpose(1, 2).flatten(2), layout)), probabilities
