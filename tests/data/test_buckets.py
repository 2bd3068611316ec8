"""Batches of similar lengths: every sample once, in an order that needs no memory."""

from __future__ import annotations

import numpy as np
import pytest

from tencentpretrain.data.buckets import SimilarLengths
from tencentpretrain.data.loader import ShuffledEpochs
from tencentpretrain.data.mixing import MixedOrder

SIZE, BATCH, STEPS = 103, 4, 5
LENGTHS = np.random.default_rng(0).integers(1, 1000, SIZE)


def order(seed: int = 7) -> SimilarLengths:
    return SimilarLengths(ShuffledEpochs(SIZE, seed), LENGTHS, BATCH, STEPS, seed)


def pairs(made: SimilarLengths | ShuffledEpochs, start: int, stop: int) -> list[tuple[int, int]]:
    epochs, indices = made(np.arange(start, stop))
    return list(zip(epochs.tolist(), indices.tolist(), strict=True))


def test_every_window_has_the_samples_that_it_had() -> None:
    plain, window = ShuffledEpochs(SIZE, 7), BATCH * STEPS
    for start in range(0, 30 * window, window):
        mine = pairs(order(), start, start + window)
        assert sorted(mine) == sorted(pairs(plain, start, start + window))


def test_every_example_is_read_once_an_epoch() -> None:
    count = SIZE * BATCH * STEPS  # whole epochs, and whole windows
    drawn = pairs(order(), 0, count)
    assert len({*drawn}) == count
    assert {epoch for epoch, _ in drawn} == {*range(BATCH * STEPS)}


def test_any_part_is_the_same_wherever_it_begins() -> None:
    whole = pairs(order(), 0, 200)
    for start, stop in ((0, 4), (3, 17), (18, 23), (60, 64), (101, 199)):
        assert pairs(order(), start, stop) == whole[start:stop]
    numbers = np.array([150, 3, 77, 3])
    epochs, indices = order()(numbers)
    assert list(zip(epochs, indices, strict=True)) == [whole[number] for number in numbers]


def test_steps_have_similar_lengths_and_come_in_no_order() -> None:
    _, indices = order()(np.arange(100 * BATCH))
    lengths = LENGTHS[indices].reshape(-1, BATCH)
    _, plain = ShuffledEpochs(SIZE, 7)(np.arange(100 * BATCH))
    before = LENGTHS[plain].reshape(-1, BATCH)
    assert np.ptp(lengths, axis=1).mean() < 0.5 * np.ptp(before, axis=1).mean()
    steps = lengths.mean(1).reshape(-1, STEPS)
    assert not (np.diff(steps, axis=1) >= 0).all(1).mean() > 0.2


def test_seeds_differ() -> None:
    assert pairs(order(1), 0, 40) != pairs(order(2), 0, 40)


@pytest.mark.parametrize("steps", [1, 3])
def test_mixtures_stay_what_they_are(steps: int) -> None:
    mixed = MixedOrder(["a", "b"], [60, 43], [0.7, 0.3], 5)
    made = SimilarLengths(mixed, LENGTHS, BATCH, steps, 5)
    window = BATCH * steps
    for start in range(0, 10 * window, window):
        numbers = np.arange(start, start + window)
        assert sorted(made(numbers)[1]) == sorted(mixed(numbers)[1])
