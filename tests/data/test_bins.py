"""Whole items in rows: nothing lost, nothing too long, little room left."""

import numpy as np
import pytest

from tencentpretrain.data.bins import Bins, assign_rows


def sizes_of(kind: str, count: int = 500, room: int = 64) -> np.ndarray:
    random = np.random.default_rng(0)
    if kind == "uniform":
        return random.integers(1, room + 1, count)
    if kind == "short":
        return random.integers(1, 6, count)
    return np.minimum(random.geometric(0.05, count), room)


@pytest.mark.parametrize("kind", ["uniform", "short", "geometric"])
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_item_is_in_one_row_and_no_row_is_too_long(kind: str, epoch: int) -> None:
    sizes = sizes_of(kind)
    bins = Bins(sizes, 64, seed=1)
    rows = [bins.items(epoch, row) for row in range(len(bins))]
    assert all(rows)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    assert max(int(sizes[row].sum()) for row in rows) <= 64
    # No more than the few rows above the least number that theory allows any method.
    assert len(rows) <= 11 / 9 * -(-sizes.sum() // 64) + 1


def test_rows_are_as_good_as_those_of_the_plain_method() -> None:
    sizes = sizes_of("geometric")
    left: list[int] = []
    for size in sorted(sizes.tolist(), reverse=True):
        fitting = [(room, number) for number, room in enumerate(left) if room >= size]
        if fitting:
            left[min(fitting)[1]] -= size
        else:
            left.append(64 - size)
    assert len(Bins(sizes, 64, seed=1)) == len(left)


def test_items_of_one_size_meet_others_in_each_epoch() -> None:
    sizes = sizes_of("short")
    bins, again, other = (Bins(sizes, 64, seed) for seed in (1, 1, 2))
    first = [bins.items(0, row) for row in range(len(bins))]
    assert first == [again.items(0, row) for row in range(len(bins))]
    for changed, epoch in ((bins, 1), (other, 0)):
        rows = [changed.items(epoch, row) for row in range(len(bins))]
        assert sum(a == b for a, b in zip(first, rows, strict=True)) < len(rows) / 4
        for one, two in zip(first, rows, strict=True):
            assert sizes[one].tolist() == sizes[two].tolist()


def test_nothing_and_a_single_item() -> None:
    assert assign_rows(np.zeros(9, np.int64), 8) == []
    assert len(Bins(np.zeros(0, np.int64), 8, seed=0)) == 0
    assert Bins(np.array([8]), 8, seed=0).items(5, 0) == [0]
