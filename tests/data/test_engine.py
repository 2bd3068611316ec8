"""Mapping over processes: order, bounded reading ahead, errors, and workers that die."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tencentpretrain.data.engine import IN_FLIGHT, make_engine
from tencentpretrain.errors import DataError


def make_square() -> Callable[[int], int]:
    return square


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))  # so that results come out of order
    if number == 13:
        raise DataError("thirteen is not wanted")
    if number == -9:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def make_failing() -> Callable[[int], int]:
    raise DataError("nothing to work with")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order(workers: int) -> None:
    assert list(make_engine(workers).map(make_square, range(12))) == [n**2 for n in range(12)]
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_items_are_read_only_as_they_are_needed() -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for number in range(100, 200):
            read += 1
            yield number

    results = make_engine(2).map(make_square, items())
    for done in range(1, 20):
        next(results)
        assert read <= done + 2 * IN_FLIGHT
    results.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_out_as_it_is(workers: int) -> None:
    with pytest.raises(DataError, match="thirteen"):
        list(make_engine(workers).map(make_square, range(100)))
    with pytest.raises(DataError, match="nothing to work with"):
        list(make_engine(workers).map(make_failing, range(100)))


def test_a_killed_worker_is_an_error_and_no_hang() -> None:
    with pytest.raises(DataError, match="worker process was killed"):
        list(make_engine(2).map(make_square, [1, 2, -9, *range(14, 40)]))
