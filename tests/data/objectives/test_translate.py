from pathlib import Path

import numpy as np
import pytest

from tencentpretrain.data.shards import ShardSet
from tencentpretrain.errors import DataError
from tests.helpers.records import (
    WORDS,
    record_objective,
    record_shards,
    some_pairs,
    words,
)

SIZES = [(3, 2), (1, 1), (20, 4), (2, 20), (7, 7), (8, 8)]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return record_shards(tmp_path, "pair", some_pairs(SIZES))


def test_the_decoder_reads_what_it_is_to_write_one_later(shards: ShardSet) -> None:
    example = record_objective("translate", shards).make(0, 0)
    assert words(shards, example["ids"]) == "w0 w1 w2 [SEP]"
    assert words(shards, example["target_ids"]) == "[CLS] w3 w4"
    assert words(shards, example["labels"]) == "w3 w4 [SEP]"
    assert example["index"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("role", ["bos", "cls", "pad", "eos", "sep"])
def test_families_choose_how_texts_begin(shards: ShardSet, role: str) -> None:
    made = record_objective("translate", shards, start=role, source_start="bos")
    example = made.make(0, 0)
    assert example["target_ids"][0] == getattr(made.tokenizer, role)
    assert words(shards, example["ids"]) == "[CLS] w0 w1 w2 [SEP]"


@pytest.mark.parametrize(("absent", "start"), [((), "[CLS]"), (("[CLS]",), "[PAD]")])
def test_auto_takes_the_first_that_there_is(tmp_path: Path, absent: tuple, start: str) -> None:
    path = tmp_path / "own.txt"
    names = ["[UNK]", "w0", "[SEP]", "[PAD]", "[CLS]", "w1"]
    path.write_text("\n".join(name for name in names if name not in absent))
    tokenizer = {"name": "space", "vocab": str(path)}
    shards = record_shards(tmp_path, "pair", "w0\tw1\n", tokenizer=tokenizer)
    example = record_objective("translate", shards).make(0, 0)
    assert words(shards, example["target_ids"]) == f"{start} w1"


@pytest.mark.parametrize("length", [8, 9, 32])
def test_d18_texts_that_are_cut_have_no_end_to_learn(
    shards: ShardSet, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        made = record_objective("translate", shards, length=length, target_length=8)
    assert len(made) == len(SIZES)
    for index, (source, target) in enumerate(SIZES):
        example = made.make(0, index)
        assert len(example["ids"]) == min(source + 1, length)
        assert example["ids"][-1] == made.tokenizer.eos
        assert len(example["target_ids"]) == len(example["labels"]) == min(target + 1, 8)
        has_end = bool(example["labels"][-1] == made.tokenizer.eos)
        assert has_end == (target + 1 <= 8)
        assert example["target_ids"][1:].tolist() == example["labels"][:-1].tolist()
    assert "pairs to length=" in caplog.text


def test_overlong_pairs_are_dropped_where_asked(
    shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    made = record_objective("translate", shards, length=8, target_length=8, overlong="drop")
    assert made.documents.tolist() == [0, 1, 4]
    assert caplog.messages == [
        "objective `translate` leaves out 3 of 6 pairs, which do not fit length=8 and "
        "target_length=8"
    ]


def test_d53_each_side_has_its_own_special_tokens(tmp_path: Path) -> None:
    entries = ["x", "[PAD]", "[SEP]", "[UNK]", *WORDS[:9]]
    path = tmp_path / "other.txt"
    path.write_text("\n".join(entries))
    shards = record_shards(
        tmp_path,
        "pair",
        "w0 w1\tx w3\nw4\tx\n",
        target_tokenizer={"name": "space", "vocab": str(path)},
    )
    made = record_objective("translate", shards)
    example = made.make(0, 0)
    assert example["target_ids"].tolist() == [1, 0, 7]
    assert example["labels"].tolist() == [0, 7, 2]
    assert example["ids"][-1] == made.tokenizer.eos == 3
    batch = made.collate([example, made.make(0, 1)])
    assert batch.streams["tgt"].inputs["ids"][1].tolist() == [1, 0] + [1] * 6
    assert batch.streams["src"].inputs["ids"][1].tolist() == [10 + 4, 3] + [0] * 6
    labels = batch.labels["lm"]
    assert labels.index is not None
    assert labels.index.tolist() == [0, 1, 2, 8, 9]
    assert labels.values.tolist() == [0, 7, 2, 0, 2]
    assert batch.tokens == 3 + 2 + 3 + 2
    with pytest.raises(DataError, match="`cls`, but the tokenizer of the targets has none"):
        record_objective("translate", shards, start="cls")


def test_a_target_vocabulary_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.txt"
    path.write_text("[UNK]\n[PAD]\nw1")
    second = {"name": "space", "vocab": str(path)}
    shards = record_shards(tmp_path, "pair", "w0\tw1\n", target_tokenizer=second)
    with pytest.raises(DataError, match="`eos` or `sep`, but the tokenizer of the targets has"):
        record_objective("translate", shards)


def test_plain_text_is_refused_with_the_way_out(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "text", "w0 w1\n")
    with pytest.raises(DataError, match=r"`translate` .* corpus\.content=pair"):
        record_objective("translate", shards)


def test_real_pairs_come_back_as_text(shared_data: Path, tmp_path: Path) -> None:
    vocab = {"name": "wordpiece", "vocab": str(shared_data / "vocab" / "google_zh_vocab.txt")}
    path = shared_data / "translation" / "news_commentary_en_zh.tsv"
    shards = record_shards(tmp_path, "pair", path, corpus_format="lines", tokenizer=vocab)
    made = record_objective("translate", shards, length=64, target_length=64)
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    for index in np.random.default_rng(0).integers(0, 1000, 20).tolist():
        example = made.make(0, index)
        source, target = (shards.tokenizer().encode(text) for text in rows[index])
        assert example["ids"].tolist() == [*source[:63], made.tokenizer.eos]
        assert example["labels"].tolist() == [*target, made.tokenizer.eos][:64]
