from functools import cache

import numpy as np
import pytest

from tencentpretrain.tasks.error_rates import edit_distance, error_rates


def slow_distance(given: str, found: str) -> int:
    """The definition."""

    @cache
    def from_here(left: int, right: int) -> int:
        if left == len(given) or right == len(found):
            return len(given) - left + len(found) - right
        same = from_here(left + 1, right + 1) + (given[left] != found[right])
        return min(same, from_here(left + 1, right) + 1, from_here(left, right + 1) + 1)

    return from_here(0, 0)


@pytest.mark.parametrize("seed", range(40))
def test_distances_are_those_of_the_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    given, found = ("".join(random.choice([*"abc"], random.integers(0, 9))) for _ in range(2))
    assert edit_distance(given, found) == slow_distance(given, found)
    assert edit_distance(found, given) == slow_distance(given, found)


@pytest.mark.parametrize(
    ("given", "found", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("", "", 0), ("abc", "abc", 0)],
)
def test_known_distances(given: str, found: str, distance: int) -> None:
    assert edit_distance(given, found) == distance


def test_words_may_be_anything() -> None:
    assert edit_distance(["the", "cat", "sat"], ["the", "bat", "sat", "down"]) == 2


def test_rates_are_over_all_texts_at_once() -> None:
    rates = error_rates(["one two three", " four "], ["one too three", "four five"])
    assert rates["wer"] == pytest.approx(2 / 4)
    assert rates["cer"] == pytest.approx((1 + 5) / (13 + 4))


def test_rates_of_nothing_are_finite() -> None:
    assert error_rates([], []) == {"wer": 0.0, "cer": 0.0}
    assert error_rates([""], ["word"]) == {"wer": 1.0, "cer": 4.0}
