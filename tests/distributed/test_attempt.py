"""Processes that are started again over a store that knows those before them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from tencentpretrain.distributed.attempt import attempt_name
from tencentpretrain.distributed.processes import Place
from tests.helpers.launch import free_port

WORLD = 3


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("localhost", free_port(), is_master=True, timeout=timedelta(seconds=5))


def started(store: dist.TCPStore) -> set[str]:
    """Names that all processes of one start have found."""

    def find(rank: int) -> str:
        client = store.clone()
        return attempt_name(client, Place(rank, WORLD, rank), 5)

    with ThreadPoolExecutor(WORLD) as pool:
        return {*pool.map(find, reversed(range(WORLD)))}


def test_each_start_has_one_name(store: dist.TCPStore) -> None:
    names = [started(store) for _ in range(3)]
    assert [len(found) for found in names] == [1, 1, 1]
    assert len(set.union(*names)) == 3


@pytest.mark.parametrize("again", [False, True])
def test_who_does_not_come_is_named(again: bool, store: dist.TCPStore) -> None:
    if again:
        started(store)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(attempt_name, store.clone(), Place(1, WORLD, 1), 5)
        with pytest.raises(RuntimeError, match=r"rank\(s\) \[2\] did not come"):
            attempt_name(store, Place(0, WORLD, 0), 0.5)
        coming.result()
    with pytest.raises(RuntimeError, match=r"rank\(s\) \[0\] did not come"):
        attempt_name(store, Place(2, WORLD, 2), 0.2)
