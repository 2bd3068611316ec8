import itertools

import numpy as np
import pytest
from numpy.random import Generator, Philox

from tencentpretrain.data.order import Permutation, generator, hash_int, hash_uniform, permute


@pytest.mark.parametrize("sizes", [range(1, 200), [4095, 4096, 4097, 65_536, 100_003]])
def test_permutation_is_a_bijection(sizes):
    for size in sizes:
        for key in [(0, 0), (7, 3)]:
            image = permute(np.arange(size), size, *key)
            assert np.array_equal(np.sort(image), np.arange(size)), size


@pytest.mark.parametrize("size", [1, 2, 3, 10, 61, 1000, 10_007, 3 * 10**12])
def test_one_index_equals_many_and_the_inverse_returns(size):
    permutation = Permutation(size, 5, 6)
    indices = np.linspace(0, size - 1, 50).astype(np.int64)
    image = permutation.at_all(indices)
    assert image.dtype == np.int64
    assert [permute(int(i), size, 5, 6) for i in indices] == image.tolist()
    assert [permutation.index_of(int(i)) for i in image] == indices.tolist()


def test_every_order_of_few_elements_is_about_equally_likely():
    orders = [tuple(permute(np.arange(4), 4, key)) for key in range(2400)]
    counts = [orders.count(order) for order in itertools.permutations(range(4))]
    # 100 of each are expected, with a standard deviation of 10.
    assert min(counts) > 60
    assert max(counts) < 145


def test_order_depends_on_every_part_of_the_key():
    keys = [(1, 2), (1, 3), (2, 2), (1, 2, 0), (1,), (-1, 2), (1 << 70, 2)]
    images = {tuple(permute(np.arange(1000), 1000, *key).tolist()) for key in keys}
    assert len(images) == len(keys)


def test_neighbours_are_separated():
    image = permute(np.arange(10_000), 10_000, 3)
    assert abs(np.corrcoef(np.arange(10_000), image)[0, 1]) < 0.04
    assert (np.abs(np.diff(image)) < 10).mean() < 0.01


def test_permutation_refuses_what_it_has_not():
    with pytest.raises(ValueError, match="at least 1, but it is 0"):
        permute(0, 0, 1)
    with pytest.raises(IndexError, match=r"\[0, 3\)"):
        permute(3, 3, 1)
    with pytest.raises(IndexError, match=r"\[-1, 2\]"):
        permute(np.array([-1, 2]), 3, 1)
    assert permute(np.array([], np.int64), 3, 1).tolist() == []


def test_generator_is_a_function_of_its_key():
    assert np.array_equal(generator(1, 2, 3).random(8), generator(1, 2, 3).random(8))
    keys = [(1, 2, 3), (1, 2, 4), (3, 2, 1), (1, 2), (1, 2, 3, 0), (-1, 2, 3)]
    assert len({float(generator(*key).random()) for key in keys}) == len(keys)


def test_generator_is_numpys_philox_with_the_hash_as_its_key():
    words = generator(4, 2).bit_generator.state["state"]["key"]
    assert int(words[0]) == hash_int(4, 2)
    assert np.array_equal(Generator(Philox(key=words)).random(4), generator(4, 2).random(4))


def test_streams_of_neighbouring_keys_are_unrelated():
    draws = np.stack([generator(0, 0, index).random(200) for index in range(200)])
    assert abs(draws.mean() - 0.5) < 0.006
    correlations = np.corrcoef(draws)[~np.eye(200, dtype=bool)]
    assert abs(correlations).max() < 0.4


def test_hash_uniform_is_uniform_and_keyed():
    draws = hash_uniform(np.arange(100_000), 1)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.02
    assert np.array_equal(draws[5:9], hash_uniform(np.arange(5, 9), 1))
    assert not np.array_equal(draws[5:9], hash_uniform(np.arange(5, 9), 2))
