from collections import Counter

import numpy as np
import pytest

from tests.helpers.objectives import objective, original
from tests.helpers.shards import SPECIALS, numbered_shards, random_shards


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("length", [8, 33, 128])
@pytest.mark.parametrize("documents", [None, np.arange(1, 40, 3)])
def test_d7_an_epoch_reads_each_token_once(pack, length, documents):
    shards = random_shards(40)
    made = objective("mlm", shards, length=length, pack=pack, documents=documents)
    used = np.arange(40) if documents is None else documents
    for epoch in range(3):
        rows = [original(made.make(epoch, index)) for index in range(len(made))]
        seen = Counter(np.concatenate(rows).tolist())
        text = np.concatenate([shards.texts[d] for d in used]).tolist()
        assert {t: n for t, n in seen.items() if t >= SPECIALS} == dict.fromkeys(text, 1)
        assert all(row[0] == made.tokenizer.cls and len(row) <= length for row in rows)
        if pack:
            assert all(len(row) == length for row in rows[:-1])
            # A [cls] and [sep] of each document and a [cls] of each row.
            assert seen[made.tokenizer.sep] == len(used)
            assert seen[made.tokenizer.cls] == len(used) + len(rows)


def test_documents_are_cut_elsewhere_in_each_epoch():
    made = objective("mlm", random_shards(40), length=33)
    cuts = [{int(original(made.make(e, i))[1]) for i in range(len(made))} for e in range(4)]
    assert len(set.union(*cuts)) > 2 * len(made)


def test_packed_documents_are_told_apart():
    made = objective("mlm", random_shards(40, longest=6), length=40)
    owner = {int(t): d for d, text in enumerate(made.shards.texts) for t in text}
    for index in range(len(made)):
        example = made.make(0, index)
        ids, documents = original(example), example["documents"]
        assert documents[0] == 0
        assert set(np.diff(documents)) <= {0, 1}
        for number in range(documents[-1] + 1):
            here = documents == number
            piece = ids[here]
            text = piece[piece >= SPECIALS]
            assert len({owner[int(t)] for t in text}) <= 1
            assert np.array_equal(example["positions"][here], np.arange(here.sum()))
            assert (piece == made.tokenizer.sep).sum() <= 1
            # Documents after the first begin with their own [cls], those before the last end.
            assert piece[0] == made.tokenizer.cls
            assert number == documents[-1] or piece[-1] == made.tokenizer.sep


def test_documents_may_be_joined():
    made = objective("mlm", random_shards(40), length=40, isolate_documents=False)
    assert {*made.make(0, 0)} == {"ids", "index", "labels"}
    isolated = objective("mlm", random_shards(40), length=40)
    assert np.array_equal(made.make(0, 5)["ids"], isolated.make(0, 5)["ids"])


def test_rows_of_single_documents():
    made = objective("mlm", numbered_shards([[9], [], [2]]), length=8, pack=False)
    rows = [original(made.make(1, index)).tolist() for index in range(len(made))]
    cls, sep = made.tokenizer.cls, made.tokenizer.sep
    assert rows == [
        [cls, 7, 8, 9, 10, 11, 12, sep],
        [cls, 13, 14, 15, sep],
        [cls, 16, 17, sep],
    ]
    assert "documents" not in made.make(0, 0)


def test_a_corpus_shorter_than_a_row_makes_one_row():
    made = objective("mlm", numbered_shards([[3]]), length=64)
    assert len(made) == 1
    ids = original(made.make(0, 0))
    assert sorted(ids.tolist()) == [2, 2, 3, 7, 8, 9]
