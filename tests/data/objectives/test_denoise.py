import numpy as np
import pytest

from tencentpretrain.data.objectives.denoise import SentenceRows
from tests.helpers.denoise import NamedTokenizer, denoising, rows, texts
from tests.helpers.objectives import objective
from tests.helpers.shards import FakeShards, numbered_shards, random_shards

NAMES = ["t5", "bart", "pegasus"]
CASES = [*NAMES, "t5 packed"]


def build(case, shards, **values):
    name, *packed = case.split()
    return denoising(name, shards, **values, **({"pack": True} if packed else {}))


@pytest.mark.parametrize("limit", [3, 17, 60])
def test_rows_hold_whole_sentences_and_partition_the_documents(limit):
    shards = numbered_shards([[4, 9, 0, 20, 3], [1], [], [5] * 50, [100]])
    every = np.arange(5)
    made = SentenceRows(shards, every, limit, seed=0)
    ends, _ = shards.sentence_boundaries()
    place, read = 0, []
    for index in range(len(made)):
        text, inside = made.read(index)
        assert 0 < len(text) == inside[-1] <= limit
        assert (np.diff(inside, prepend=0) > 0).all()
        expected = {int(e) - place for e in ends if place < e <= place + len(text)} | {len(text)}
        assert set(inside.tolist()) == expected
        place += len(text)
        read += text.tolist()
    assert read == texts(shards)


def test_rows_leave_out_other_documents():
    shards = numbered_shards([[4, 9], [1], [30], [2, 2]])
    made = SentenceRows(shards, np.array([1, 3]), 8, seed=0)
    assert [made.read(i)[0].tolist() for i in range(len(made))] == [
        shards.texts[1].tolist(),
        shards.texts[3].tolist(),
    ]


@pytest.mark.parametrize("case", CASES)
def test_examples_are_pure_and_differ_between_epochs_and_seeds(case):
    values = {"select": "random"} if case == "pegasus" else {}
    shards = random_shards(40)
    made, twin = (build(case, shards, length=40, **values) for _ in range(2))
    other = build(case, shards, length=40, seed=4, **values)
    assert rows(made, 3) == rows(twin, 3)
    for changed in (rows(made, 4), rows(other, 3)):
        same = [a == b for a, b in zip(rows(made, 3), changed, strict=False)]
        assert sum(same) < len(same) / 3


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_reads_each_token_once(case):
    shards = random_shards(60)
    made = build(case, shards, length=40, target_length=40)
    for epoch in range(2):
        read = [
            token
            for source, target in rows(made, epoch)
            for token in {*source, *target}
            if token in range(7, 7 + shards.tokens)
        ]
        assert sorted(read) == sorted(texts(shards))


@pytest.mark.parametrize("case", CASES)
def test_documents_of_one_token_make_sound_rows(case):
    shards = numbered_shards([[1]] * 6)
    assert {len(source) for source, _ in rows(build(case, shards, length=8))} <= {2, 3, 4, 7, 8}


@pytest.mark.parametrize("name", NAMES)
def test_no_row_crosses_documents(name):
    shards = random_shards(40)
    owner = {int(t): number for number, text in enumerate(shards.texts) for t in text}
    for source, target in rows(denoising(name, shards, length=40)):
        assert len({owner[t] for t in (*source, *target) if t in owner}) == 1


@pytest.mark.parametrize("case", CASES)
def test_d18_nothing_behind_the_end_of_a_target_is_supervised(case):
    made = build(case, random_shards(20), length=40, target_length=40)
    examples = [made.make(0, index) for index in range(len(made))]
    batch = made.collate(examples)
    labels, grid = batch.labels["lm"], batch.streams["tgt"].layout.valid
    width = grid.shape[1]
    assert len({len(e["labels"]) for e in examples}) > 1
    flat = labels.values.flatten()
    index = labels.index if labels.index is not None else np.arange(len(flat))
    expected = []
    for row, example in enumerate(examples):
        assert example["labels"][-1] == made.tokenizer.eos
        assert made.tokenizer.eos not in example["labels"][:-1]
        positions = row * width + np.arange(len(example["labels"]))
        expected += [*zip(positions.tolist(), example["labels"].tolist(), strict=True)]
    assert [*zip(index.tolist(), flat.tolist(), strict=True)] == expected
    assert len(flat) == int(grid.sum())


@pytest.mark.parametrize("case", CASES)
def test_d19_the_layout_is_that_of_the_shortened_source(case):
    made = build(case, random_shards(20), length=40, target_length=40)
    examples = [made.make(0, index) for index in range(len(made))]
    batch = made.collate(examples)
    for stream, key in (("src", "ids"), ("tgt", "target_ids")):
        ids, valid = batch.streams[stream].inputs["ids"], batch.streams[stream].layout.valid
        for row, example in enumerate(examples):
            size = len(example[key])
            assert valid[row].tolist() == [place < size for place in range(valid.shape[1])]
            assert ids[row, :size].tolist() == example[key].tolist()
            assert (ids[row, size:] == made.tokenizer.pad).all()
    assert batch.tokens == sum(len(e["ids"]) + len(e["target_ids"]) for e in examples)


@pytest.mark.parametrize("name", NAMES)
def test_a_vocabulary_without_bos_and_eos_marks_ends_as_bert_does(name):
    shards = numbered_shards([[6, 4, 8]])
    tokenizer = NamedTokenizer(shards.tokens, bos=-1, eos=-1)
    example = objective(name, shards, tokenizer).make(0, 0)
    assert example["ids"][-1] == example["labels"][-1] == tokenizer.sep
    if name == "bart":
        assert example["ids"][0] == example["labels"][0] == tokenizer.cls
        assert example["target_ids"][0] == tokenizer.sep


@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_begins_with_what_is_asked_for(name):
    shards = FakeShards([[[20, 21, 22], [23, 24]]])
    usual = {"t5": "pad", "bart": "eos", "pegasus": "pad"}[name]
    for role in (usual, "bos"):
        values = {} if role == usual else {"start": role}
        made = objective(name, shards, NamedTokenizer(100), **values)
        assert made.make(0, 0)["target_ids"][0] == getattr(made.tokenizer, role)
