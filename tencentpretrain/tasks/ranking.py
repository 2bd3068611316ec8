"""How well scores put what belongs together before everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.packing import Integers

Scores = NDArray[np.floating[Any]]

DEPTHS: Final = (1, 5, 10)
"""How far down a list is looked."""


def first_ranks(scores: Scores, relevant: NDArray[np.bool_]) -> Integers:
    """Place [N], from 0, of the best of the `relevant` [N, M] in the order of `scores` [N, M].

    What is not relevant and has the same score comes before it, so that scores that are all alike
    find nothing.

    Raises:
        ValueError: if a row has nothing that is relevant.
    """
    if not relevant.any(1).all():
        raise ValueError("each row needs something that is relevant")
    best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
    ranks: Integers = ((scores >= best) & ~relevant).sum(1)
    return ranks


def recalls(ranks: Integers, depths: Sequence[int] = DEPTHS) -> dict[str, float]:
    """Share of the rows whose first hit is among the first k, by `recall@k`."""
    return {f"recall@{depth}": float((ranks < depth).mean()) for depth in depths}
