from collections import Counter

import numpy as np
import pytest

from tencentpretrain.errors import DataError
from tests.helpers.objectives import objective
from tests.helpers.shards import SPECIALS, FakeTokenizer, numbered_shards, random_shards


def pairs(made, epoch: int) -> list[tuple[int, int]]:
    """(input, label) of all supervised positions of an epoch."""
    found = []
    for index in range(len(made)):
        example = made.make(epoch, index)
        inputs = example["ids"][example["index"]]
        found += zip(inputs.tolist(), example["labels"].tolist(), strict=True)
    return found


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("length", [8, 33, 128])
def test_d28_each_token_is_read_once_and_predicted_once(bos, isolate, length):
    shards = random_shards(40)
    made = objective("lm", shards, length=length, bos=bos, isolate_documents=isolate)
    eos = made.tokenizer.eos
    for epoch in range(2):
        rows = [made.make(epoch, index)["ids"] for index in range(len(made))]
        read = Counter(np.concatenate(rows).tolist())
        assert {t: n for t, n in read.items() if t >= SPECIALS} == dict.fromkeys(
            np.concatenate(shards.texts).tolist(), 1
        )
        assert read[eos] == 40
        assert read[made.tokenizer.bos] == (40 if bos else 0)
        predicted = Counter(label for _, label in pairs(made, epoch))
        firsts = {int(text[0]) for text in shards.texts}
        for text in shards.texts:
            for token in text.tolist():
                unseen = isolate and not bos and token in firsts
                assert predicted[token] == (0 if unseen else 1)
        assert predicted[eos] == 40
        assert predicted[made.tokenizer.bos] == (40 if bos and not isolate else 0)


def test_the_label_is_the_next_token():
    made = objective("lm", random_shards(40), length=33)
    last = {int(text[-1]) for text in made.shards.texts}
    for given, label in pairs(made, 0):
        assert label == (made.tokenizer.eos if given in last else given + 1)


def test_d28_nothing_is_predicted_across_documents():
    made = objective("lm", random_shards(40, longest=5), length=33)
    for index in range(len(made)):
        example = made.make(0, index)
        unsupervised = np.setdiff1d(np.arange(len(example["ids"])), example["index"])
        assert (example["ids"][unsupervised] == made.tokenizer.eos).all()
        for number in range(example["documents"][-1] + 1):
            here = example["documents"] == number
            assert np.array_equal(example["positions"][here], np.arange(here.sum()))


def test_joined_documents_have_neither_borders_nor_unsupervised_positions():
    made = objective("lm", random_shards(40), length=33, isolate_documents=False)
    example = made.make(0, 0)
    assert {*example} == {"ids", "labels", "index"}
    assert np.array_equal(example["ids"][1:], example["labels"][:-1])
    assert len(example["index"]) == 33


def test_rows_begin_elsewhere_in_each_epoch():
    made = objective("lm", random_shards(40), length=33)
    cuts = [{int(made.make(e, i)["ids"][0]) for i in range(len(made))} for e in range(4)]
    assert len(set.union(*cuts)) > 2 * len(made)


def test_special_tokens_that_are_needed():
    shards = numbered_shards([[20]])
    with_sep = objective("lm", shards, tokenizer=FakeTokenizer(missing=["eos", "bos", "mask"]))
    assert with_sep.tokenizer.sep in with_sep.make(0, 0)["ids"]
    with pytest.raises(DataError, match="objective `lm` needs the special token `eos`"):
        objective("lm", shards, tokenizer=FakeTokenizer(missing=["eos", "sep"]))
    with pytest.raises(DataError, match="needs the special token `bos`"):
        objective("lm", shards, tokenizer=FakeTokenizer(missing=["bos"]), bos=True)
