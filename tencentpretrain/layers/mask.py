"""Which positions may attend to which: one value made once for all layers of a stack."""

from __future__ import annotations

from functools import cached_property
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

    @cached_property
    def bias(self) -> Tensor | None:
        """The mask to be added to scores in fp32: 0 where allowed.

        Elsewhere a large finite number, so that a row without any key gives no NaN.
        """
        if self.allowed is None:
            return None
        low = torch.finfo(torch.float32).min / 2
        return torch.zeros(self.allowed.shape, device=self.allowed.device).masked_fill_(
            ~self.allowed, low
        )


def build_mask(name: MaskName, layout: Layout) -> AttentionMask:
    """Mask over the positions of `layout`.

    "full" sees all valid positions, "causal" the position itself and earlier ones, "prefix" also
    all of the first `layout.prefix` positions (UniLM; Dong et al., 2019). Packed documents see
    only themselves. Padding is never seen by a valid position.
    """
    length = layout.valid.shape[1]
    device = layout.valid.device
    if name == "causal" and layout.documents is None and layout.is_full:
        return AttentionMask(is_causal=True)
    allowed = None if layout.is_full else layout.valid[:, None, None, :]
    if name != "full":
        earlier = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
        if name == "prefix" and layout.prefix is not None:
            positions = torch.arange(length, device=device)
            earlier = earlier | (positions < layout.prefix[:, None])[:, None, None, :]
        allowed = earlier if allowed is None else allowed & earlier
    if layout.documents is not None:
        same = layout.documents[:, None, :, None] == layout.documents[:, None, None, :]
        allowed = same if allowed is None else allowed & same
    return AttentionMask(allowed)
