"""Rectangles of patches that are hidden together (Bao et al., 2022, BEiT, algorithm 1)."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

TRIES: Final = 10
"""Rectangles that are drawn before no more are hidden, as in the published code."""


def hide_blocks(
    random: Generator, side: int, most: int, least_block: int, least_ratio: float
) -> NDArray[np.bool_]:
    """Patches [side, side] that are hidden: rectangles, until there are `most` or none fits.

    The area of each is drawn between `least_block` and what is still wanted, its height over width
    evenly on a logarithmic scale; of one that overlaps others only the new patches count.

    Args:
        random: What is drawn from.
        side: Patches from one edge of the image to the other.
        most: Greatest number of hidden patches.
        least_block: Least area of a rectangle, in patches, before it is rounded.
        least_ratio: Least height over width; the greatest is its inverse.
    """
    hidden = np.zeros((side, side), np.bool_)
    limit = -math.log(least_ratio)
    while (room := most - int(hidden.sum())) > 0:
        if not any(_hide(hidden, random, room, least_block, limit) for _ in range(TRIES)):
            break
    return hidden


def _hide(
    hidden: NDArray[np.bool_], random: Generator, room: int, least_block: int, limit: float
) -> bool:
    """Hide one rectangle with at most `room` new patches; whether it has any."""
    side = len(hidden)
    area = random.uniform(*sorted((least_block, room)))
    ratio = math.exp(random.uniform(-limit, limit))
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if not (0 < height < side and 0 < width < side):
        return False
    top, left = random.integers(side - height + 1), random.integers(side - width + 1)
    block = hidden[top : top + height, left : left + width]
    if not 0 < block.size - int(block.sum()) <= room:
        return False
    block[:] = True
    return True
