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
        is_causal: whether queries see no later keys; only ever beside `allowed` None and as many
            queries as keys, since a causal mask together with others is part of `allowed`.
        scores: added to the scores, broadcastable to [B, N, S_q, S_k]; gradients flow into them.
    """

    def __init__(
        self,
        allowed: Tensor | None = None,
        is_causal: bool = False,
        scores: Tensor | None = None,
    ) -> None:
        self.allowed = allowed
        self.is_causal = is_causal
        self.scores = scores
        self._added: dict[tuple[int, torch.dtype], Tensor] = {}
        self._biases: dict[tuple[int, int, int, torch.dtype], Tensor] = {}

    def alone(self) -> AttentionMask:
        """The same for one layer, which shares nothing with others that gradients flow into."""
        if self.scores is None or not self.scores.requires_grad:
            return self
        return AttentionMask(self.allowed, self.is_causal, self.scores)

    def grid(self, length: int, device: torch.device) -> Tensor | None:
        """What is allowed, in a form broadcastable to [B, N, S, S]; None if it is everything."""
        if not self.is_causal:
            return self.allowed
        return lower_triangle(length, device)

    def added(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What is added to scores, broadcastable to [B, N, S_q, S_k]; None if it is nothing.

        It is `scores` where allowed, else a large finite number, so that no row gives NaN.
        """
        key = length, dtype
        if key not in self._added:
            allowed = self.grid(length, device)
            scores = None if self.scores is None else self.scores.to(dtype)
            if allowed is None:
                return scores
            low = torch.finfo(dtype).min / 2
            if scores is None:
                scores = torch.zeros((), dtype=dtype, device=allowed.device)
            self._added[key] = torch.where(allowed, scores, low)
        return self._added[key]

    def bias(self, rows: int, heads: int, length: int, dtype: torch.dtype) -> Tensor | None:
        """What is added on the CPU, in a form broadcastable to scores [B * N, S_q, S_k]."""
        key = rows, heads, length, dtype
        if key not in self._biases:
            added = self.added(length, dtype, torch.device("cpu"))
            if added is None:
                return None
            if added.shape[:2] != (1, 1):
                added = added.expand(rows, heads, -1, -1)
            self._biases[key] = added.flatten(0, 1)
        return self._biases[key]


def lower_triangle(length: int, device: torch.device) -> Tensor:
    """Positions and those that they see in a causal model [1, 1, S, S]."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def build_mask(
    name: MaskName,
    layout: Layout,
    *,
    window: int | None = None,
    scores: Tensor | None = None,
    past: int = 0,
    keys: Tensor | None = None,
) -> AttentionMask:
    """Mask over the positions of `layout`, or of those behind `past` earlier ones.

    "full" sees all valid positions, "causal" the position itself and earlier ones, "prefix" also
    all of the first `layout.prefix` positions (UniLM; Dong et al., 2019). Packed documents see only
    themselves. Padding is never seen by a valid position.

    Args:
        name: Kind of mask.
        layout: Of the queries.
        window: Greatest distance of a key that is seen, in positions; None is any.
        scores: Added to the scores, broadcastable to [B, N, S_q, S_k].
        past: Number of keys before the first query.
        keys: [B, past + S_q] bool, which keys are valid; None where all are. Only read with a past.
    """
    valid = layout.valid
    if not past:
        keys = None if layout.is_full else valid
    is_plain = keys is None and layout.documents is None and window is None
    if name == "causal" and is_plain and not past:
        return AttentionMask(is_causal=True, scores=scores)
    allowed = None if keys is None else keys[:, None, None, :]
    if layout.documents is not None:
        # Padding is a document of its own, so that all queries see some key.
        documents = torch.where(valid, layout.documents, -1)
        allowed = documents[:, None, :, None] == documents[:, None, None, :]
    seen = _reach(name, layout, past, window)
    if seen is not None:
        allowed = seen if allowed is None else allowed & seen
    return AttentionMask(allowed, scores=scores)


def _reach(name: MaskName, layout: Layout, past: int, window: int | None) -> Tensor | None:
    """What position and distance allow, broadcastable to [B, 1, S_q, S_k]; None is everything."""
    length = layout.valid.shape[1]
    if window is None and (name == "full" or length == 1):
        return None
    positions = torch.arange(past + length, device=layout.valid.device)
    distances = positions[past:, None] - positions
    seen = None
    if name != "full":
        seen = (distances >= 0)[None, None]
        if name == "prefix" and layout.prefix is not None:
            seen = seen | (positions < layout.prefix[:, None])[:, None, None, :]
    if window is not None:
        near = (distances.abs() <= window)[None, None]
        seen = near if seen is None else seen & near
    return seen


def memory_mask(layout: Layout) -> AttentionMask:
    """Mask of cross attention: all valid positions of the other sequence."""
    return AttentionMask(None if layout.is_full else layout.valid[:, None, None, :])
