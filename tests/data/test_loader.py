import itertools
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from tencentpretrain.config import ConfigError
from tencentpretrain.data.loader import Loader, shared_batches
from tencentpretrain.errors import CheckpointError, DataError
from tencentpretrain.types import Batch, Layout, Stream
from tests.helpers.objectives import objective
from tests.helpers.shards import random_shards

ROOT = Path(__file__).resolve().parents[2]


class Numbers:
    """Examples that tell their epoch and index; `wrong` raises, and so does no other."""

    def __init__(self, count: int, wrong: int = -1, error: Exception | None = None) -> None:
        self._count = count
        self._wrong = wrong
        self._error = error

    def __len__(self) -> int:
        return self._count

    def make(self, epoch: int, index: int) -> tuple[int, int]:
        if index == self._wrong and self._error is not None:
            raise self._error
        return epoch, index

    def collate(self, examples: list[tuple[int, int]]) -> Batch:
        ids = torch.tensor(examples)
        return Batch({"src": Stream({"ids": ids}, Layout.of(ids >= 0))}, tokens=ids.numel())


def numbers(batches: list[Batch]) -> list[tuple[int, int]]:
    rows = [row for batch in batches for row in batch.streams["src"].inputs["ids"].tolist()]
    return [(epoch, index) for epoch, index in rows]


def flat(parts: Iterable[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    return [*itertools.chain(*parts)]


def take(loader: Loader, steps: int) -> list[list[tuple[int, int]]]:
    return [numbers(batches) for batches in itertools.islice(loader, steps)]


@pytest.mark.parametrize("count", [1, 3, 10, 37])
@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_d8_each_epoch_has_each_example_once_in_another_order(count, batch_size):
    steps = -(-3 * count // batch_size)
    samples = flat(take(Loader(Numbers(count), batch_size, 4, seed=1), steps))
    assert len(samples) == steps * batch_size  # batches run across epochs and are full
    orders = [samples[epoch * count : (epoch + 1) * count] for epoch in range(3)]
    for epoch, order in enumerate(orders):
        assert sorted(order) == [(epoch, index) for index in range(count)]
    if count > 3:
        assert [i for _, i in orders[0]] != [i for _, i in orders[1]]
        assert [i for _, i in orders[0]] != list(range(count))


def test_the_order_depends_on_the_seed():
    orders = [take(Loader(Numbers(37), 37, 37, seed=seed), 1) for seed in (1, 2)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    made = objective("bert", random_shards(20), length=40)
    loaders = [Loader(made, 8, 3, seed=1, workers=count) for count in (0, workers)]
    for plain, served in itertools.islice(zip(*loaders, strict=True), 12):
        assert [batch.tokens for batch in plain] == [batch.tokens for batch in served]
        for one, other in zip(plain, served, strict=True):
            ours, theirs = one.streams["src"], other.streams["src"]
            for key in ours.inputs:
                assert torch.equal(ours.inputs[key], theirs.inputs[key])
            assert torch.equal(one.labels["mlm"].values, other.labels["mlm"].values)
            assert torch.equal(one.labels["mlm"].index, other.labels["mlm"].index)
            assert torch.equal(one.labels["nsp"].values, other.labels["nsp"].values)


@pytest.mark.parametrize("micro", [1, 3, 5, 12, 100])
def test_micro_batches_cut_the_step_without_changing_it(micro):
    whole = take(Loader(Numbers(37), 12, 12, seed=1), 5)
    loader = Loader(Numbers(37), 12, micro, seed=1)
    for expected, batches in zip(whole, loader, strict=False):
        assert numbers(batches) == expected
        sizes = [len(batch.streams["src"].inputs["ids"]) for batch in batches]
        assert sizes[:-1] == [micro] * (len(sizes) - 1)
        assert 1 <= sizes[-1] <= micro


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_the_step(world):
    whole = take(Loader(Numbers(37), 12, 12, seed=1), 5)
    ranks = [
        take(Loader(Numbers(37), 12, 2, seed=1, rank=rank, world=world), 5) for rank in range(world)
    ]
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == whole


def test_a_shuffled_evaluation_sees_each_example_once_too():
    def seen(count: int, limit: int | None = None) -> list[tuple[int, int]]:
        shuffled = shared_batches(Numbers(count), 4, limit, is_shuffled=True)
        return numbers([s.batch for s in shuffled])

    everything = [(0, index) for index in range(50)]
    assert seen(50) == seen(50) != everything
    assert sorted(seen(50)) == everything
    # What lies side by side in the files is in different batches.
    assert max(abs(a - b) for (_, a), (_, b) in itertools.pairwise(seen(50)[:4])) > 4
    assert sorted(seen(100, 10)) == [(0, index) for index in range(0, 100, 10)]


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_after_any_step_goes_on_as_if_never_stopped(workers):
    whole = take(Loader(Numbers(10), 4, 4, seed=1), 9)
    for done in range(9) if not workers else (2, 3):
        first = Loader(Numbers(10), 4, 4, seed=1, workers=workers)
        assert take(first, done) == whole[:done]
        state = first.state_dict()
        assert state == {"samples": 4 * done}
        again = Loader(Numbers(10), 4, 4, seed=1, workers=workers)
        again.load_state_dict(state)
        assert take(again, 9 - done) == whole[done:]


def test_the_same_samples_follow_with_another_batch_size():
    samples = flat(take(Loader(Numbers(10), 4, 4, seed=1), 6))
    loader = Loader(Numbers(10), 7, 7, seed=1, samples=3)
    assert flat(take(loader, 3)) == samples[3:24]
    loader.skip(1)
    assert loader.samples == 25


def test_starting_late_costs_nothing():
    loader = Loader(Numbers(10**12), 2, 2, seed=1, samples=10**17)
    assert [epoch for epoch, _ in take(loader, 1)[0]] == [10**5, 10**5]
    assert loader.samples == 10**17 + 2


def test_iterating_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    take(Loader(Numbers(10), 4, 4, seed=1), 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("count", [1, 7, 20])
@pytest.mark.parametrize("micro", [1, 4, 50])
def test_evaluation_sees_each_example_once_in_order(count, micro):
    batches = [s.batch for s in shared_batches(Numbers(count), micro)]
    assert numbers(batches) == [(0, index) for index in range(count)]
    sizes = [len(batch.streams["src"].inputs["ids"]) for batch in batches]
    assert sizes[:-1] == [micro] * (len(sizes) - 1)


def test_evaluation_of_a_part_is_spread_evenly():
    part = numbers([s.batch for s in shared_batches(Numbers(100), 4, limit=10, workers=1)])
    assert part == [(0, index) for index in range(0, 100, 10)]
    assert len(numbers([s.batch for s in shared_batches(Numbers(7), 4, limit=10)])) == 7


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_for_the_user_arrive_as_they_were(workers):
    examples = Numbers(10, wrong=3, error=DataError("line 7 of the table has no label"))
    with pytest.raises(DataError) as error:
        take(Loader(examples, 4, 4, seed=1, workers=workers), 3)
    assert str(error.value) == "line 7 of the table has no label"


def test_other_errors_of_a_worker_arrive_with_their_traceback():
    examples = Numbers(10, wrong=3, error=ZeroDivisionError("of ours"))
    with pytest.raises(RuntimeError, match=r"(?s)worker.*in make.*ZeroDivisionError: of ours"):
        take(Loader(examples, 4, 4, seed=1, workers=1), 3)
    with pytest.raises(ZeroDivisionError, match="of ours"):
        take(Loader(examples, 4, 4, seed=1), 3)


def test_what_cannot_be_loaded_is_refused():
    with pytest.raises(DataError, match="no example to train on"):
        Loader(Numbers(0), 4, 4, seed=1)
    with pytest.raises(ConfigError, match=r"batch_size: must be a multiple .* 3, but is 4"):
        Loader(Numbers(5), 4, 4, seed=1, world=3)
    for state in ({}, {"samples": -1}, {"samples": "3"}):
        with pytest.raises(CheckpointError, match="`samples`"):
            Loader(Numbers(5), 4, 4, seed=1).load_state_dict(state)


ENDING = """
import itertools, sys
from tencentpretrain.data.loader import Loader
from tests.data.test_loader import Numbers
batches = iter(Loader(Numbers(1000), 4, 2, seed=1, workers=2))
next(batches)
print("ready", flush=True)
"""


@pytest.mark.parametrize("end", ["", "del batches"])
def test_a_process_ends_though_its_workers_have_more(end):
    done = subprocess.run(
        [sys.executable, "-c", ENDING + end], cwd=ROOT, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_batches_keep_coming_after_signals_to_the_whole_group():
    script = ENDING.replace(
        "batches =",
        "import signal\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, lambda *_: print('caught', flush=True))\n"
        "batches =",
    )
    script += "for line in sys.stdin: [next(batches) for _ in range(50)]; print('done', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            for number in (signal.SIGINT, signal.SIGTERM):
                os.killpg(process.pid, number)
                assert process.stdout.readline() == "caught\n"
            output, _ = process.communicate("go\n", timeout=60)
        finally:
            process.kill()
    assert (process.returncode, output) == (0, "done\n")


def test_indices_of_large_epochs_are_spread():
    loader = Loader(Numbers(10**9), 1000, 1000, seed=1)
    epochs, indices = zip(*loader.step_samples(0), strict=True)
    assert {*epochs} == {0}
    assert len({*indices}) == 1000
    quarters = Counter(np.array(indices) // (10**9 // 4))
    assert min(quarters.values()) > 180


class Products(Numbers):
    """Examples that are made by a product of matrices, as filter banks are."""

    def collate(self, examples: list[tuple[int, int]]) -> Batch:
        factor = torch.full((3, 3), 1.001)
        product = torch.stack([(index + factor) @ factor for _, index in examples])
        return Batch({}, extras={"product": product})


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_in_bf16_rounds_no_inputs(workers: int) -> None:
    (expected,) = shared_batches(Products(3), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = shared_batches(Products(3), 3, workers=workers)
        assert torch.is_autocast_enabled("cpu")
    product = found.batch.extras["product"]
    assert product.dtype == torch.float32
    assert torch.equal(product, expected.batch.extras["product"])
