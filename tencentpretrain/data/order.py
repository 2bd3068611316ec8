"""Chance as a pure function of its key: permutations, generators and hashes without a state.

Everything random about data is keyed by integers such as (seed, epoch, index), so that content and
order do not depend on workers, ranks, batch sizes or on what was read before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, overload

import numpy as np
from numpy.random import Generator, Philox
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

MASK: Final = (1 << 64) - 1
GOLDEN: Final = 0x9E3779B97F4A7C15
FIRST: Final = 0xBF58476D1CE4E5B9
SECOND: Final = 0x94D049BB133111EB
SMALL: Final = 4096
"""Below this size a permutation takes twice the rounds: with few, small ones are visibly uneven."""


def _mix(value: int) -> int:
    """Spread every bit of a 64-bit integer over all others (finaliser of SplitMix64)."""
    value = ((value ^ (value >> 30)) * FIRST) & MASK
    value = ((value ^ (value >> 27)) * SECOND) & MASK
    return value ^ (value >> 31)


def _mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix` of every element; uint64 arithmetic of arrays wraps around silently."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(SECOND)
    return values ^ (values >> np.uint64(31))


def hash_int(*key: int) -> int:
    """A 64-bit hash of any integers; keys of different lengths are different."""
    state = _mix(len(key) + 1)
    for part in key:
        while True:
            state = _mix(((state + GOLDEN) & MASK) ^ (part & MASK))
            part >>= 64
            if part in (0, -1):
                break
    return state


def hash_uniform(values: NDArray[Any], *key: int) -> NDArray[np.float64]:
    """Numbers uniform in [0, 1), one for each integer of `values`, a function of it and `key`."""
    mixed = _mix_array(np.asarray(values).astype(np.uint64) + np.uint64(hash_int(*key)))
    # A double holds 53 bits; more would round up to 1.
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


class _Key(ISeedSequence):
    """Hands Philox its key as it is: twice as fast as the key argument, which also asks the OS."""

    def __init__(self, words: Sequence[int]) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return np.array(self._words[:n_words], dtype)


def generator(*key: int) -> Generator:
    """A generator whose stream is a function of `key` alone; streams of other keys are unrelated.

    Philox is counter-based (Salmon et al., 2011, Parallel random numbers: as easy as 1, 2, 3), so
    that making one costs microseconds.
    """
    word = hash_int(*key)
    # numpy accepts any ISeedSequence here, but its annotation names only the class SeedSequence.
    sequence: Any = _Key((word, _mix(word ^ GOLDEN)))
    return Generator(Philox(sequence))


class Permutation:
    """A bijection of range(size) that needs no memory, and its inverse.

    A Feistel network over the pairs of range(a) x range(b), where a * b is hardly larger than
    `size`; what falls outside of range(size) is sent through again until it is inside (Black and
    Rogaway, 2002, Ciphers with arbitrary finite domains).

    Args:
        size: number of elements, at least 1.
        key: any integers.

    Raises:
        ValueError: if there is nothing to permute.
    """

    def __init__(self, size: int, *key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs a size of at least 1, but it is {size}")
        self.size = size
        self._a = math.isqrt(size - 1) + 1
        self._b = -(-size // self._a)
        base = hash_int(*key)
        rounds = 12 if size < SMALL else 6
        self._keys = [_mix((base + i * GOLDEN) & MASK) for i in range(rounds)]

    def at(self, index: int) -> int:
        """Where `index` goes."""
        self._check(index, index)
        keys = self._keys
        while True:
            left, right = index % self._a, index // self._a
            for i in range(0, len(keys), 2):
                left = (left + _mix((right + keys[i]) & MASK)) % self._a
                right = (right + _mix((left + keys[i + 1]) & MASK)) % self._b
            index = left + right * self._a
            if index < self.size:
                return index

    def index_of(self, value: int) -> int:
        """What goes to `value`."""
        self._check(value, value)
        keys = self._keys
        while True:
            left, right = value % self._a, value // self._a
            for i in reversed(range(0, len(keys), 2)):
                right = (right - _mix((left + keys[i + 1]) & MASK)) % self._b
                left = (left - _mix((right + keys[i]) & MASK)) % self._a
            value = left + right * self._a
            if value < self.size:
                return value

    def at_all(self, indices: NDArray[Any]) -> NDArray[np.int64]:
        """Where each of `indices` goes."""
        found = np.array(indices, np.uint64)
        if not found.size:
            return found.astype(np.int64)
        self._check(int(np.min(indices)), int(np.max(indices)))
        outside: Any = ...
        while True:
            found[outside] = self._network(found[outside])
            outside = found >= np.uint64(self.size)
            if not outside.any():
                return found.astype(np.int64)

    def _network(self, indices: NDArray[np.uint64]) -> NDArray[np.uint64]:
        a, b = np.uint64(self._a), np.uint64(self._b)
        keys = np.array(self._keys, np.uint64)
        left, right = indices % a, indices // a
        for i in range(0, len(keys), 2):
            # The hash is reduced before it is added, so that the sum cannot wrap around.
            left = (left + _mix_array(right + keys[i]) % a) % a
            right = (right + _mix_array(left + keys[i + 1]) % b) % b
        return left + right * a

    def _check(self, low: int, high: int) -> None:
        if low < 0 or high >= self.size:
            raise IndexError(f"indices must be in [0, {self.size}), but are in [{low}, {high}]")


@overload
def permute(index: int, size: int, *key: int) -> int: ...
@overload
def permute(index: NDArray[Any], size: int, *key: int) -> NDArray[np.int64]: ...
def permute(index: Any, size: int, *key: int) -> Any:
    """Where `index` (one, or an array of them) goes in the permutation of range(size) of `key`."""
    permutation = Permutation(size, *key)
    return permutation.at_all(index) if isinstance(index, np.ndarray) else permutation.at(index)
