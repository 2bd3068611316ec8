import math
import random as plain

import numpy as np
import pytest

from tencentpretrain.data.blocks import hide_blocks
from tencentpretrain.data.order import generator


def reference(draw: plain.Random, side: int, most: int, least: int, ratio: float) -> np.ndarray:
    """Algorithm 1 of BEiT as its published code has it, over Python's own generator."""
    mask = np.zeros((side, side), bool)
    count = 0
    while count < most:
        delta = 0
        for _ in range(10):
            area = draw.uniform(least, most - count)
            aspect = math.exp(draw.uniform(math.log(ratio), -math.log(ratio)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < side and h < side:
                top, left = draw.randint(0, side - h), draw.randint(0, side - w)
                new = (~mask[top : top + h, left : left + w]).sum()
                if 0 < new <= most - count:
                    mask[top : top + h, left : left + w] = True
                    delta = int(new)
                    break
        if not delta:
            break
        count += delta
    return mask


@pytest.mark.parametrize(("side", "most", "least"), [(14, 75, 16), (8, 25, 4), (8, 32, 6)])
def test_blocks_are_distributed_as_published(side: int, most: int, least: int) -> None:
    draw = plain.Random(0)
    rounds = 400
    theirs = [reference(draw, side, most, least, 0.3) for _ in range(rounds)]
    ours = [hide_blocks(generator(0, n), side, most, least, 0.3) for n in range(rounds)]
    for kind in (theirs, ours):
        assert max(int(mask.sum()) for mask in kind) <= most
    sizes = [np.array([mask.sum() for mask in kind]) for kind in (ours, theirs)]
    error = np.sqrt(sum(size.var() for size in sizes) / rounds)
    assert abs(sizes[0].mean() - sizes[1].mean()) < 4 * error
    centre = np.mean(ours, 0) - np.mean(theirs, 0)
    assert np.abs(centre).max() < 0.18
    # Neighbours are hidden together much more often than by chance.
    share = np.mean(ours)
    together = np.mean([mask[1:] & mask[:-1] for mask in ours])
    assert together > 1.4 * share**2


def test_the_mask_is_a_function_of_the_key() -> None:
    masks = [hide_blocks(generator(3, n), 14, 75, 16, 0.3) for n in (1, 1, 2)]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()
