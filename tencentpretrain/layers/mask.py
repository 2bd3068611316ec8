"""Which positions may attend to which: one value made once for all layers of a stack."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tencentpretrain.types import Layout

MaskName = Literal["full", "causal", "prefix"]


class AttentionMask:
    """What attention of queries [.., S_q] over keys [.., S_k] may see.

    Args:
        allowed: bool, broadcastable to [B, N, S_q, S_k]; None allows all that `is_causal` does.
        is_causal: whether queries see no later keys; only ever beside `allowed` None, since a
            causal mask together with others is part of `allowed`.
    """

    def __init__(self, allowed: Tensor | None = None, is_causal: bool = False) -> None:
        self.allowed = allowed
        self.is_causal = is_causal
        self._biases: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def grid(self, length: int, device: torch.device) -> Tensor | None:
        """What is allowed, in a form broadcastable to [B, N, S, S]; None if it is everything."""
        if not self.is_causal:
            return self.allowed
        return lower_triangle(length, device)

    def bias(self, heads: int, length: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to scores [B * N, S_q, S_k], in a form broadcastable to them.

        It is 0 where allowed, else a large finite number, so that no row of scores gives NaN.
        """
        key = heads, length, dtype
        if key not in self._biases:
            allowed = self.grid(length, torch.device("cpu"))
            if allowed is None:
                return None
            low = torch.finfo(dtype).min / 2
            bias = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, low)
            rows = 1 if len(bias) == 1 else heads
            self._biases[key] = bias.expand(-1, rows, -1, -1).flatten(0, 1)
        return self._biases[key]


def lower_triangle(length: int, device: torch.device) -> Tensor:
    """Positions and those that they see in a causal model [1, 1, S, S]."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def build_mask(name: MaskName, layout: Layout) -> AttentionMask:
    """Mask over the positions of `layout`.

    "full" sees all valid positions, "causal" the position itself and earlier ones, "prefix" also
    all of the first `layout.prefix` positions (UniLM; Dong et al., 2019). Packed documents see only
    themselves. Padding is never seen by a valid position.
    """
    valid = layout.valid
    if name == "causal" and layout.documents is None and layout.is_full:
        return AttentionMask(is_causal=True)
    allowed = None if layout.is_full else valid[:, None, None, :]
    if layout.documents is not None:
        # Padding is a document of its own, so that all queries see some key.
        documents = torch.where(valid, layout.documents, -1)
        allowed = documents[:, None, :, None] == documents[:, None, None, :]
    if name != "full":
        earlier = lower_triangle(valid.shape[1], valid.device)
        if name == "prefix" and layout.prefix is not None:
            positions = torch.arange(valid.shape[1], device=valid.device)
            earlier = earlier | (positions < layout.prefix[:, None])[:, None, None, :]
        allowed = earlier if allowed is None else allowed & earlier
    return AttentionMask(allowed)
