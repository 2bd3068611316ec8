import numpy as np
import pytest

from tencentpretrain.data.loader import Loader
from tencentpretrain.data.mixing import MixedOrder, Mixture
from tests.data.test_loader import Numbers, flat, take

SIZES = {"en": 10, "zh": 3, "code": 400}
WEIGHTS = [0.5, 0.2, 0.3]


def mixture(
    seed: int = 1, sizes: dict[str, int] = SIZES, weights: list[float] = WEIGHTS
) -> Mixture:
    return Mixture({name: Numbers(size) for name, size in sizes.items()}, weights, seed)


def loader(batch_size: int = 20, micro: int = 20, seed: int = 1, **values: int) -> Loader:
    mixed = mixture(seed)
    return Loader(mixed, batch_size, micro, seed, order=mixed.order, **values)


def source_of(order: MixedOrder, numbers: np.ndarray) -> np.ndarray:
    found = np.full(len(numbers), -1)
    for source, (places, _) in enumerate(order.share(numbers)):
        assert (found[places] == -1).all()
        found[places] = source
    return found


@pytest.mark.parametrize(
    "weights", [[1], [1, 1], [0.5, 0.2, 0.3], [3, 1], [0.001, 7, 0.3, 2.5], [1 / 3] * 7]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_any_window_is_near_the_weights(weights, seed):
    order = MixedOrder([f"s{n}" for n in range(len(weights))], [5] * len(weights), weights, seed)
    sources = source_of(order, np.arange(4000))
    assert sources.min() >= 0
    counts = np.stack([np.cumsum(sources == n) for n in range(len(weights))])
    ideal = np.arange(1, 4001) * (np.array(weights) / sum(weights))[:, None]
    error = counts - ideal
    # From any sample to any other: no more than a sample for each source at either end.
    assert (error.max(1) - error.min(1) <= len(weights) + 1).all()


def test_proportions_are_exact_in_the_long_run():
    order = MixedOrder(["a", "b", "c"], [5, 5, 5], [0.7, 0.1, 0.2], seed=3)
    for start in (0, 7, 9 * 10**18):
        parts = [*order.share(np.arange(start, start + 1000))]
        assert [len(places) for places, _ in parts] == [700, 100, 200]
        for share, (_, counts) in zip((7, 1, 2), parts, strict=True):
            assert abs(int(counts[0]) - share * start // 10) <= 3


def test_counts_are_those_of_counting():
    order = MixedOrder(["a", "b", "c"], [5, 5, 5], [0.61, 0.07, 1.9], seed=3)
    for places, counts in order.share(np.arange(5000)):
        assert counts.tolist() == [*range(len(places))]
        # The same for any part of the samples, in any order.
        some = np.random.default_rng(0).permutation(5000)[:50]
        parts = [*order.share(some)]
        assert sum(len(found) for found, _ in parts) == 50
    places, counts = [*order.share(np.arange(5000))][2]
    later = [*order.share(np.arange(4000, 5000))][2]
    assert later[1].tolist() == counts[places >= 4000].tolist()


def test_each_source_goes_through_epochs_of_its_own():
    samples = flat(take(loader(), 200))
    names = [*SIZES]
    starts = np.cumsum([0, *SIZES.values()])
    mixed = mixture()
    epochs, indices = mixed.order(np.arange(4000))
    orders = {name: [] for name in names}
    for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True):
        number = int(starts.searchsorted(index, side="right")) - 1
        orders[names[number]].append((epoch, index - int(starts[number])))
    for name, size in SIZES.items():
        seen = orders[name]
        assert [epoch for epoch, _ in seen] == [place // size for place in range(len(seen))]
        whole = [seen[start : start + size] for start in range(0, len(seen) - size, size)]
        assert all(sorted(i for _, i in part) == [*range(size)] for part in whole)
        assert len({tuple(i for _, i in part) for part in whole}) > 1
    assert samples == [mixed.make(*sample)[1] for sample in zip(epochs, indices, strict=True)]


def test_a_source_is_read_in_the_order_that_it_has_alone():
    mixed, alone = mixture(), mixture(sizes={"zh": 3}, weights=[9])
    epochs, indices = mixed.order(np.arange(200))
    own = (indices >= 10) & (indices < 13)
    expected = [part[: own.sum()].tolist() for part in alone.order(np.arange(200))]
    assert [epochs[own].tolist(), (indices[own] - 10).tolist()] == expected


def test_sources_of_one_size_have_different_orders():
    order = MixedOrder(["a", "b"], [50, 50], [1, 1], seed=3)
    _, indices = order(np.arange(100))
    assert sorted(indices.tolist()) == [*range(100)]
    assert indices[indices < 50].tolist() != (indices[indices >= 50] - 50).tolist()


def test_examples_are_those_of_the_sources():
    mixed = mixture()
    assert len(mixed) == 413
    made = [mixed.make(5, index) for index in (0, 9, 10, 12, 13, 412)]
    assert made == [
        (0, (5, 0)),
        (0, (5, 9)),
        (1, (5, 0)),
        (1, (5, 2)),
        (2, (5, 0)),
        (2, (5, 399)),
    ]
    origin = mixed.collate(made).origin
    assert origin is not None
    assert origin.names == ("en", "zh", "code")
    assert origin.numbers.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_a_mixture_goes_on_as_if_never_stopped(workers):
    whole = take(loader(), 9)
    for done in range(9) if not workers else (4,):
        first = loader(workers=workers)
        assert take(first, done) == whole[:done]
        state = first.state_dict()
        assert state == {"samples": 20 * done}
        again = loader(workers=workers)
        again.load_state_dict(state)
        assert take(again, 9 - done) == whole[done:]


def test_ranks_and_micro_batches_do_not_change_a_mixture():
    whole = take(loader(), 5)
    ranks = [take(loader(micro=3, rank=rank, world=4), 5) for rank in range(4)]
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == whole
    assert flat(take(loader(7, 7), 10)) == flat(whole)[:70]


def test_starting_late_in_a_mixture_costs_nothing():
    late = loader(samples=10**17)
    [step] = take(late, 1)
    assert max(epoch for epoch, _ in step) > 10**15


def test_the_order_depends_on_the_seed():
    assert take(loader(seed=1), 3) != take(loader(seed=2), 3)
    # Also which source a sample is of.
    numbers = np.arange(20)
    assert len({tuple(source_of(mixture(seed).order, numbers)) for seed in range(9)}) > 4
