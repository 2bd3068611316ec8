from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from tencentpretrain.errors import DataError
from tests.helpers.objectives import objective
from tests.helpers.shards import SPECIALS, FakeShards, FakeTokenizer, numbered_shards, random_shards

MODES = pytest.mark.parametrize("pack", [True, False])


def neighbours(made, epoch: int) -> tuple[Counter, Counter]:
    """(token, its label) of all supervised places of an epoch, by direction."""
    following: Counter = Counter()
    preceding: Counter = Counter()
    for index in range(len(made)):
        example = made.make(epoch, index)
        for place, label in zip(example["index"], example["labels"], strict=True):
            found = preceding if place % 2 else following
            found[int(example["ids"][place // 2]), int(label)] += 1
    return following, preceding


@MODES
@pytest.mark.parametrize("length", [8, 33, 128])
def test_each_neighbour_is_predicted_once_in_each_direction(pack: bool, length: int) -> None:
    shards = random_shards(40)
    made = objective("bilm", shards, length=length, pack=pack)
    cls, sep = made.tokenizer.cls, made.tokenizer.sep
    expected: Counter = Counter()
    for text in shards.texts:
        expected.update(pairwise([cls, *text.tolist(), sep]))
    for epoch in range(2):
        following, preceding = neighbours(made, epoch)
        assert following == expected
        assert preceding == Counter({(b, a): count for (a, b), count in expected.items()})


@MODES
def test_every_token_is_read_once(pack: bool) -> None:
    shards = random_shards(40)
    made = objective("bilm", shards, length=33, pack=pack)
    rows = [made.make(0, index)["ids"] for index in range(len(made))]
    read = Counter(np.concatenate(rows).tolist())
    assert read.pop(made.tokenizer.cls) == read.pop(made.tokenizer.sep) == 40
    assert read == Counter(np.concatenate(shards.texts).tolist())
    assert max(map(len, rows)) == 33
    if pack:
        assert {len(row) for row in rows[:-1]} == {33}


@MODES
def test_no_label_crosses_a_border_of_documents(pack: bool) -> None:
    made = objective("bilm", random_shards(40, longest=4), length=33, pack=pack)
    following, preceding = neighbours(made, 0)
    assert not {label for token, label in following if token == made.tokenizer.sep}
    assert not {label for token, label in preceding if token == made.tokenizer.cls}


def test_rows_of_single_documents_hold_one_each() -> None:
    made = objective("bilm", random_shards(40), length=33, pack=False)
    for index in range(len(made)):
        text = made.make(0, index)["ids"]
        text = text[text >= SPECIALS]
        assert (np.diff(text) == 1).all()  # ids grow by one within a document
        assert sum(np.isin(text, document).any() for document in made.shards.texts) <= 1


def test_rows_begin_elsewhere_in_each_epoch_only_where_they_are_packed() -> None:
    for pack in (True, False):
        made = objective("bilm", random_shards(40), length=33, pack=pack)
        first, second = (
            [made.make(epoch, index)["ids"].tolist() for index in range(len(made))]
            for epoch in (0, 1)
        )
        assert (first == second) != pack


@MODES
@pytest.mark.parametrize("size", [30, 6, 14, 62, 1])
def test_d35_a_corpus_that_ends_in_nothing_or_in_a_full_row_ends(pack: bool, size: int) -> None:
    """With [cls] and [sep] 6, 14, 30 and 62 tokens fill rows of 8 to the last place."""
    shards = numbered_shards([[size], [], [size], []])
    made = objective("bilm", shards, length=8, pack=pack)
    rows = [made.make(0, index)["ids"] for index in range(len(made))]
    assert sum(map(len, rows)) == 2 * (size + 2)
    assert len(made) == (-(-2 * (size + 2) // 8) if pack else 2 * -(-(size + 2) // 8))
    with pytest.raises(DataError, match="objective `bilm` finds no example"):
        objective("bilm", FakeShards([[], []]), length=8, pack=pack)


@MODES
def test_batches_hold_the_examples_and_supervise_no_padding(pack: bool) -> None:
    made = objective("bilm", random_shards(12), length=33, pack=pack, pad_to=8)
    examples = [made.make(0, index) for index in range(len(made))][-7:]
    batch = made.collate(examples)
    stream, labels = batch.streams["src"], batch.labels["bilm"]
    ids, valid = stream.inputs["ids"], stream.layout.valid
    assert stream.layout.documents is None
    assert {*stream.inputs} == {"ids"}
    assert batch.tokens == int(valid.sum()) == sum(len(example["ids"]) for example in examples)
    grid = torch.full((*ids.shape, 2), -1)
    assert labels.index is not None
    assert len(set(labels.index.tolist())) == len(labels.index)
    grid.view(-1)[labels.index] = labels.values
    assert (grid[~valid] == -1).all()
    for row, example in enumerate(examples):
        own = np.full(2 * len(example["ids"]), -1)
        own[example["index"]] = example["labels"]
        assert grid[row, : len(example["ids"])].flatten().tolist() == own.tolist()
        assert ids[row, : len(example["ids"])].tolist() == example["ids"].tolist()
        # Inside of a row the labels are its own neighbours, wherever they are given.
        for step, direction in ((1, 0), (-1, 1)):
            there = torch.roll(ids[row], -step)
            inner = slice(None, len(example["ids"]) - 1) if step > 0 else slice(1, None)
            given = grid[row, inner, direction]
            told = given != -1
            assert torch.equal(given[told], there[inner][told])


def test_special_tokens_that_are_needed() -> None:
    for role in ("cls", "sep"):
        with pytest.raises(DataError, match=f"objective `bilm` needs the special token `{role}`"):
            objective("bilm", numbered_shards([[9]]), tokenizer=FakeTokenizer(missing=[role]))
