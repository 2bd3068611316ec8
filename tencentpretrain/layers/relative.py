"""Scores that depend on the distance of a query from a key, added before the softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tencentpretrain.config import Config, PositiveInt, check


class RelativeConfig(Config):
    """Learned scores by bucket of distance (T5)."""

    buckets: PositiveInt = 32
    """Number of buckets; half of them, each one distance, near, the others ever wider."""
    distance: PositiveInt = 128
    """Distance from which on all share the last bucket, in positions."""

    @check("buckets", "distance")
    def _wide_enough(self) -> str | None:
        if self.buckets % 4 == 0 and self.distance > self.buckets // 2:
            return None
        return (
            "buckets must be a multiple of 4 and less than twice the distance, but they are "
            f"{self.buckets} and {self.distance}"
        )


class RelativeBuckets(nn.Module):
    """A learned score for each bucket of distances and head (Raffel et al., 2020, section 2.1).

    One table serves all layers of a stack.

    Args:
        config: The buckets.
        heads: Number of heads N.
        hidden: Width of the model, whose root the scores start at the inverse of.
        is_bidirectional: Whether later keys have buckets of their own.
    """

    def __init__(
        self, config: RelativeConfig, heads: int, hidden: int, *, is_bidirectional: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.hidden = hidden
        self.is_bidirectional = is_bidirectional
        self.weight = nn.Parameter(torch.empty(config.buckets, heads))

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.weight, std=self.hidden**-0.5)

    def buckets(self, distances: Tensor) -> Tensor:
        """Bucket of each distance, that is of key position minus query position."""
        count, offset = self.config.buckets, torch.zeros_like(distances)
        if self.is_bidirectional:
            count //= 2
            offset = (distances > 0) * count
            distances = distances.abs()
        else:
            distances = (-distances).clamp(min=0)
        exact = count // 2
        ratio = math.log(self.config.distance / exact)
        far = torch.log(distances.clamp(min=1).float() / exact) / ratio * (count - exact)
        far = (exact + far.long()).clamp(max=count - 1)
        return offset + torch.where(distances < exact, distances, far)

    def forward(self, queries: int, keys: int) -> Tensor:
        """Scores [1, N, S_q, S_k] of the last `queries` of `keys` positions."""
        device = self.weight.device
        # One row of all distances; each query sees a window of it.
        distances = torch.arange(1 - keys, queries, device=device)
        scores = nn.functional.embedding(self.buckets(distances), self.weight)
        windows = scores.unfold(0, keys, 1)
        return windows.flip(0).transpose(0, 1)[None]


def alibi_scores(heads: int, queries: int, keys: int, device: torch.device) -> Tensor:
    """Scores [1, N, S_q, S_k] that fall with the distance (Press et al., 2022, ALiBi, section 3).

    Slopes are a geometric sequence; where N is no power of two, those of the next lower power are
    followed by every other one of the next higher.
    """
    power = 1 << (heads.bit_length() - 1)
    steps = torch.arange(1, power + 1, dtype=torch.float32, device=device) * (8 / power)
    if power < heads:
        between = torch.arange(heads - power, dtype=torch.float32, device=device)
        steps = torch.cat([steps, (2 * between + 1) * (4 / power)])
    positions = torch.arange(keys, dtype=torch.float32, device=device)
    distances = (positions[None, :] - positions[keys - queries :, None]).abs()
    return -(torch.exp2(-steps)[:, None, None] * distances)[None]
