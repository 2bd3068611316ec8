"""From scores to the next token of each row; the definitions are those of the papers named.

Shapes: B rows, V vocabulary, T tokens that may be written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tencentpretrain.data.order import generator
from tencentpretrain.generate.decoding import Decoding

STEPS = 1 << 32
"""Draws are multiples of one over this: in fp64 no product with a total rounds up to the total."""


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens `seen` [B, V] less likely (Keskar et al., 2019, CTRL, section 4.1)."""
    lowered = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(seen, lowered, scores)


def keep_top(scores: Tensor, count: int) -> Tensor:
    """Exclude tokens below the `count` likeliest of each row (Fan et al., 2018, section 5.4)."""
    least = scores.topk(min(count, scores.shape[-1])).values[..., -1:]
    return scores.masked_fill(scores < least, -torch.inf)


def keep_nucleus(scores: Tensor, mass: float) -> Tensor:
    """Keep the likeliest tokens up to and with the one that makes their sum reach `mass`.

    Holtzman et al., 2020, section 3.1.
    """
    ordered, tokens = scores.sort()
    is_left_out = ordered.softmax(-1).cumsum(-1) <= 1 - mass
    is_left_out[..., -1] = False
    return scores.masked_fill(is_left_out.scatter(-1, tokens, is_left_out), -torch.inf)


def keep_likely(scores: Tensor, share: float) -> Tensor:
    """Keep tokens with at least `share` of the greatest probability (Nguyen et al., 2024)."""
    probabilities = scores.softmax(-1)
    least = share * probabilities.amax(-1, keepdim=True)
    return scores.masked_fill(probabilities < least, -torch.inf)


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [B] under the points `uniform` [B] in [0, 1) of the distributions of `scores`."""
    sums = scores.softmax(-1, dtype=torch.float64).cumsum(-1)
    points = uniform[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, points, right=True).squeeze(1)


def uniform_draws(seed: int, numbers: Sequence[int], steps: int) -> Tensor:
    """Numbers in [0, 1) [B, T], each a function of the seed, the number of its row and its step."""
    rows = [generator(seed, number).random(steps) for number in numbers]
    return torch.from_numpy(np.floor(np.stack(rows) * STEPS) / STEPS)


class Seen:
    """Which tokens occurred in each row [B, V].

    Args:
        prompts: Ids that each row begins with.
        vocabulary: V.
        device: Of the scores.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], vocabulary: int, device: torch.device
    ) -> None:
        table = np.zeros((len(prompts), vocabulary), np.bool_)
        for row, ids in zip(table, prompts, strict=True):
            row[list(ids)] = True
        self.table = torch.from_numpy(table).to(device)

    def add(self, tokens: Tensor) -> None:
        """Count the tokens [B] that were chosen."""
        self.table.scatter_(1, tokens[:, None], True)

    def select(self, rows: Tensor) -> None:
        """Go on with `rows` [B'] of those before."""
        self.table = self.table.index_select(0, rows)


class Chooser:
    """Chooses the next token of each row of a batch.

    Args:
        decoding: How.
        seen: What occurred, where repetition is penalised.
        draws: Points [B, T] of the distributions, where tokens are drawn.
    """

    def __init__(self, decoding: Decoding, seen: Seen | None, draws: Tensor | None) -> None:
        self._decoding = decoding
        self._seen = seen
        self._draws = draws
        self._step = 0

    def __call__(self, scores: Tensor) -> Tensor:
        """Tokens [B] that follow, given the `scores` [B, V] of the model."""
        decoding, step = self._decoding, self._step
        self._step += 1
        if self._seen is not None:
            scores = penalise(scores.float(), self._seen.table, decoding.repetition_penalty)
        if self._draws is None:
            tokens = scores.argmax(-1)
        else:
            tokens = draw(warp(scores.float(), decoding), self._draws[:, step])
        if self._seen is not None:
            self._seen.add(tokens)
        return tokens

    def select(self, rows: Tensor) -> None:
        """Go on with `rows` [B'] of those before."""
        if self._seen is not None:
            self._seen.select(rows)
        if self._draws is not None:
            self._draws = self._draws.index_select(0, rows)


def warp(scores: Tensor, decoding: Decoding) -> Tensor:
    """Scores [B, V] of what may be drawn, others at minus infinity."""
    scores = scores / decoding.temperature
    if decoding.top_k is not None:
        scores = keep_top(scores, decoding.top_k)
    if decoding.top_p is not None and decoding.top_p < 1:
        scores = keep_nucleus(scores, decoding.top_p)
    if decoding.min_p is not None:
        scores = keep_likely(scores, decoding.min_p)
    return scores
