"""What tests of objectives with a source and a target share."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.helpers.objectives import objective
from tests.helpers.shards import SPECIALS, FakeShards, FakeTokenizer

SENTINELS = 100


class NamedTokenizer(FakeTokenizer):
    """Behind the ids of a text, sentinels in descending order, and maybe other names."""

    def __init__(self, text: int, written: str = "<extra_id_{}>", **names: int) -> None:
        missing = [name for name, number in names.items() if number < 0]
        super().__init__(text + SPECIALS + SENTINELS, missing)
        last = self.vocab_size - 1
        self.names = {written.format(number): last - number for number in range(SENTINELS)} | names

    def id(self, token: str) -> int | None:
        return self.names.get(token)


def denoising(name: str, shards: FakeShards, **values: Any) -> Any:
    """The objective `name` over `shards` with a vocabulary that has sentinels."""
    return objective(name, shards, NamedTokenizer(shards.tokens), **values)


def rows(made: Any, epoch: int = 0) -> list[tuple[list[int], list[int]]]:
    """Sources and targets of an epoch, checked to be what collating and the model expect."""
    pairs = []
    start = made.edge(made.config.start)
    for index in range(len(made)):
        example = made.make(epoch, index)
        assert {value.dtype for value in example.values()} == {np.dtype(np.int64)}
        target = example["labels"].tolist()
        assert example["target_ids"].tolist() == [start, *target[:-1]]
        assert example["index"].tolist() == [*range(len(target))]
        assert 1 < len(example["ids"]) <= made.config.length
        assert 1 < len(target) <= made.config.target_length
        assert example["ids"][-1] == target[-1] == made.tokenizer.eos
        pairs.append((example["ids"].tolist(), target))
    return pairs


def texts(shards: FakeShards) -> list[int]:
    """All ids that are stored."""
    return np.concatenate(shards.texts).tolist()
