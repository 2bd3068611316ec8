import numpy as np
import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.objectives import OBJECTIVES
from tencentpretrain.data.objectives.base import Objective
from tencentpretrain.data.shards import Ragged, ShardWriter, open_shards, text_columns
from tencentpretrain.errors import DataError
from tests.helpers.objectives import objective
from tests.helpers.shards import FakeShards, FakeTokenizer, numbered_shards, random_shards

NAMES = ["albert", "bert", "lm", "mlm"]


def test_registered_names():
    assert {*NAMES} <= {*OBJECTIVES}
    assert OBJECTIVES.get("bert").supervises == ("mlm", "nsp")
    assert OBJECTIVES.get("albert").supervises == ("mlm", "sop")
    assert OBJECTIVES.get("mlm").supervises == ("mlm",)
    assert OBJECTIVES.get("lm").supervises == ("lm",)


@pytest.mark.parametrize(
    ("name", "role"), [("bert", "mask"), ("albert", "sep"), ("mlm", "cls"), ("mlm", "mask")]
)
def test_missing_special_token_is_named(name, role):
    with pytest.raises(DataError, match=f"objective `{name}` needs the special token `{role}`"):
        objective(name, numbered_shards([[3]]), tokenizer=FakeTokenizer(missing=[role]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shards", [FakeShards([]), numbered_shards([[], []])])
def test_d30_no_example_is_refused_in_one_sentence(name, shards):
    with pytest.raises(DataError, match=f"objective `{name}` finds no example") as error:
        objective(name, shards)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_no_document_left_is_refused(name):
    with pytest.raises(DataError, match="the 0 documents that it may use of the 2 stored"):
        objective(name, numbered_shards([[3], [4]]), documents=np.array([], np.int64))


def test_config_is_checked():
    with pytest.raises(ConfigError, match="length: must be >= 8, but is 5"):
        decode(OBJECTIVES.get("bert").Config, {"name": "bert", "length": 5})
    with pytest.raises(ConfigError, match="did you mean `mask_rate`"):
        decode(OBJECTIVES.get("mlm").Config, {"name": "mlm", "mask_rte": 0.5})
    with pytest.raises(ConfigError, match="did you mean `span`"):
        decode(OBJECTIVES.get("mlm").Config, {"name": "mlm", "masking": "spam"})


@pytest.fixture(params=[*NAMES, "single"])
def any_objective(request) -> Objective:
    name, values = (request.param, {}) if request.param != "single" else ("mlm", {"pack": False})
    return objective(name, random_shards(30), length=40, **values)


def test_examples_are_pure_and_differ_between_epochs_and_seeds(any_objective):
    made = any_objective
    twin = type(made)(made.config, made.shards, made.tokenizer, made.seed)
    other = type(made)(made.config, made.shards, made.tokenizer, made.seed + 1)
    count = min(len(made), len(other))
    for index in range(count):
        first, again = made.make(3, index), twin.make(3, index)
        assert first.keys() == again.keys()
        assert all(np.array_equal(first[key], again[key]) for key in first)
    for changed in [(made, 4), (other, 3)]:
        same = [
            np.array_equal(made.make(3, i)["ids"], changed[0].make(changed[1], i)["ids"])
            for i in range(count)
        ]
        assert sum(same) < count / 4


def test_batches_hold_the_examples(any_objective):
    examples = [any_objective.make(0, index) for index in range(len(any_objective))][-7:]
    batch = any_objective.collate(examples)
    stream = batch.streams["src"]
    ids, valid = stream.inputs["ids"], stream.layout.valid
    assert valid.dtype == torch.bool
    assert batch.tokens == sum(len(e["ids"]) for e in examples) == int(valid.sum())
    for row, example in enumerate(examples):
        size = len(example["ids"])
        assert ids[row, :size].tolist() == example["ids"].tolist()
        assert (ids[row, size:] == any_objective.tokenizer.pad).all()
        assert valid[row].tolist() == [i < size for i in range(valid.shape[1])]
        for key in ("segments", "positions"):
            assert (key in stream.inputs) == (key in example)
            if key in example:
                assert stream.inputs[key][row, :size].tolist() == example[key].tolist()
        assert (stream.layout.documents is not None) == ("documents" in example)
        if stream.layout.documents is not None:
            assert stream.layout.documents[row, :size].tolist() == example["documents"].tolist()
    if not stream.layout.is_full:
        assert stream.layout.tokens.tolist() == valid.flatten().nonzero().squeeze(1).tolist()
    labels = batch.labels[any_objective.supervises[0]]
    expected = [
        (row * ids.shape[1] + int(position), int(label))
        for row, example in enumerate(examples)
        for position, label in zip(example["index"], example["labels"], strict=True)
    ]
    assert labels.index is not None
    assert [*zip(labels.index.tolist(), labels.values.tolist(), strict=True)] == expected


@pytest.mark.parametrize(("pad_to", "width"), [(1, 13), (8, 16), (64, 20)])
def test_width_is_rounded_up_but_not_beyond_the_length(pad_to, width):
    made = objective("bert", numbered_shards([[6, 4]]), length=20, pad_to=pad_to, short_rate=0.0)
    batch = made.collate([made.make(0, 0)])
    assert batch.streams["src"].inputs["ids"].shape == (1, width)


def test_where_all_positions_are_supervised_no_index_is_needed():
    made = objective("lm", numbered_shards([[39]]), length=8, isolate_documents=False)
    batch = made.collate([made.make(0, index) for index in range(5)])
    assert batch.labels["lm"].index is None
    assert batch.labels["lm"].values.shape == batch.streams["src"].inputs["ids"].shape


@pytest.mark.parametrize("name", ["albert", "bert", "mlm"])
def test_d11_masked_rows_keep_their_text_in_the_labels(name):
    made = objective(name, random_shards(30), length=40, mask_rate=0.3)
    for index in range(len(made)):
        example = made.make(0, index)
        original = example["ids"].copy()
        original[example["index"]] = example["labels"]
        # Ids grow by one within a document, whatever was masked.
        text = original[~np.isin(original, [*made.tokenizer.special_ids])]
        assert len(example["index"]) == max(1, int(len(text) * 0.3 + 0.5))
        assert set(text.tolist()) <= set(np.concatenate(made.shards.texts).tolist())
        assert len(set(text.tolist())) == len(text)


@pytest.mark.parametrize("name", ["albert", "bert", "mlm", "single"])
def test_d16_stored_words_are_masked_whole(name):
    plain = random_shards(20)
    random = np.random.default_rng(0)
    words = [random.random(len(text)) < 0.5 for text in plain.texts]
    shards = FakeShards([[text.tolist()] for text in plain.texts], words)
    first = np.concatenate([text[starts] for text, starts in zip(shards.texts, words, strict=True)])
    values = {"pack": False} if name == "single" else {}
    made = objective(name.replace("single", "mlm"), shards, length=40, masking="word", **values)
    for index in range(len(made)):
        example = made.make(0, index)
        original = example["ids"].copy()
        original[example["index"]] = example["labels"]
        chosen = np.zeros(len(original), bool)
        chosen[example["index"]] = True
        is_text = ~np.isin(original, [*made.tokenizer.special_ids])
        inside = is_text[1:] & is_text[:-1] & ~np.isin(original[1:], first)
        assert (chosen[1:][inside] == chosen[:-1][inside]).all()


@pytest.mark.parametrize("name", NAMES)
def test_stored_documents_give_the_same_examples(name, tmp_path):
    shards = random_shards(30)
    random = np.random.default_rng(0)
    words = np.concatenate([random.random(len(text)) < 0.5 for text in shards.texts])
    sentence_ends, document_ends = shards.sentence_boundaries()
    lengths = shards.lengths()
    owner = document_ends.searchsorted(sentence_ends)
    columns = text_columns(shards.tokens + 7, has_words=True)
    with ShardWriter(
        tmp_path / "shards", columns=columns, vocab_size=shards.tokens + 7, shard_tokens=500
    ) as writer:
        relative = sentence_ends - (document_ends - lengths)[owner]
        writer.write(
            {
                "tokens": Ragged(np.concatenate(shards.texts), lengths),
                "sentences": Ragged(relative, np.bincount(owner)),
                "words": Ragged(words, lengths),
            }
        )
    stored = open_shards(tmp_path / "shards")
    assert len([*(tmp_path / "shards").glob("*.tokens.npy")]) > 2
    values = {"masking": "word"} if name != "lm" else {}
    shards = FakeShards([[t.tolist()] for t in shards.texts], np.split(words, document_ends[:-1]))
    shards.sentence_boundaries = lambda: (sentence_ends, document_ends)
    in_memory = objective(name, shards, length=40, **values)
    on_disk = type(in_memory)(in_memory.config, stored, in_memory.tokenizer, in_memory.seed)
    assert len(on_disk) == len(in_memory)
    for index in range(len(in_memory)):
        one, other = in_memory.make(1, index), on_disk.make(1, index)
        assert all(np.array_equal(one[key], other[key]) for key in one)
