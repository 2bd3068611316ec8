from collections import Counter

import numpy as np
import pytest

from tencentpretrain.data.spans import (
    count_noise,
    fitting_tokens,
    poisson_limits,
    random_segments,
    replace_spans,
    span_tokens,
)


@pytest.mark.parametrize(
    ("length", "rate", "mean", "tokens", "target"),
    # The first is T5's own, the others follow from its formula.
    [(512, 0.15, 3.0, 568, 114), (128, 0.15, 3.0, 141, 29), (512, 0.3, 8.0, 693, 235)],
)
def test_rows_are_as_long_as_published(length, rate, mean, tokens, target):
    assert fitting_tokens(length - 1, rate, mean) == tokens
    noise, spans = count_noise(tokens, rate, mean)
    assert tokens - noise + spans + 1 == length
    assert noise + spans + 1 == target


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("mean", [1.0, 3.0, 10.0])
def test_counts_are_possible_and_near_the_rate(rate, mean):
    for tokens in range(2, 400):
        noise, spans = count_noise(tokens, rate, mean)
        assert 1 <= spans <= noise <= tokens - spans + (spans - 1)
        assert spans <= tokens - noise
        assert abs(noise - tokens * rate) <= 1
    assert count_noise(1, rate, mean) == (1, 1)


@pytest.mark.parametrize("rate", [0.15, 0.6, 0.95])
def test_no_longer_row_fits(rate):
    for room in range(3, 60):
        tokens = fitting_tokens(room, rate, 3.0)
        sizes = [
            n - noise + spans
            for n in (tokens, tokens + 1)
            for noise, spans in [count_noise(n, rate, 3.0)]
        ]
        assert sizes[0] <= room < sizes[1]


def test_all_segmentations_are_equally_likely():
    random = np.random.default_rng(0)
    found = Counter(tuple(random_segments(6, 3, random).tolist()) for _ in range(5000))
    assert {sum(lengths) for lengths in found} == {6}
    assert len(found) == 10  # 5 places for 2 borders
    assert min(found.values()) > 420
    assert max(found.values()) < 580


def test_poisson_lengths_have_the_known_probabilities():
    for mean in (0.1, 3.0, 200.0):
        limits = poisson_limits(mean)
        shares = np.diff(limits, prepend=0)
        assert limits[-1] == 1
        numbers = np.arange(2, len(limits) + 1)
        assert np.allclose(shares[1:], shares[:-1] * mean / numbers, atol=1e-12)
    assert poisson_limits(3.0)[0] == pytest.approx(3 * np.exp(-3) / (1 - np.exp(-3)))


@pytest.mark.parametrize("seed", range(5))
def test_spans_are_replaced_as_one_would_by_hand(seed):
    random = np.random.default_rng(seed)
    ids = np.arange(100, 130)
    cuts = np.sort(random.choice(31, 8, replace=seed > 2))
    starts, lengths = cuts[::2], np.diff(cuts)[::2]
    marks = np.arange(4)
    expected, place = [], 0
    for start, length, mark in zip(starts, lengths, marks, strict=True):
        expected += [*ids[place:start], mark]
        place = start + length
    expected += [*ids[place:]]
    assert replace_spans(ids, starts, lengths, marks).tolist() == expected
    inside = [n for s, size in zip(starts, lengths, strict=True) for n in range(s, s + size)]
    assert span_tokens(starts, lengths).tolist() == inside


def test_spans_of_no_token_insert():
    starts, none = np.array([0, 2, 2, 3]), np.zeros(4, int)
    assert replace_spans(np.array([7, 8, 9]), starts, none, 0).tolist() == [0, 7, 8, 0, 0, 9, 0]
    nothing = np.zeros(0, int)
    assert replace_spans(np.array([7]), nothing, nothing, 0).tolist() == [7]
    assert span_tokens(nothing, nothing).tolist() == []
