from pathlib import Path

import numpy as np
import pytest
import torch

from tencentpretrain.data.shards import ShardSet
from tencentpretrain.errors import DataError
from tencentpretrain.layers.mask import build_mask
from tests.helpers.records import record_objective, record_shards, some_pairs, words

SIZES = [(3, 2), (1, 1), (20, 4), (2, 20), (9, 1), (4, 5)]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return record_shards(tmp_path, "pair", some_pairs(SIZES))


def test_only_the_target_and_its_end_are_learned(shards: ShardSet) -> None:
    made = record_objective("prefix_lm", shards, length=32)
    example = made.make(0, 0)
    assert words(shards, example["ids"]) == "w0 w1 w2 [SEP] w3 w4"
    assert words(shards, example["labels"]) == "w3 w4 [SEP]"
    assert example["index"].tolist() == [3, 4, 5]
    assert example["segments"].tolist() == [0, 0, 0, 0, 1, 1]
    assert example["prefix"].tolist() == [4]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("supervise_source", [False, True])
def test_d18_nothing_follows_the_end_token(
    shards: ShardSet, bos: bool, supervise_source: bool
) -> None:
    made = record_objective(
        "prefix_lm", shards, length=32, bos=bos, supervise_source=supervise_source
    )
    for index, (source, target) in enumerate(SIZES):
        example = made.make(0, index)
        ids = np.append(example["ids"], made.tokenizer.eos)
        # Each label is the next token, and the last one is the end.
        assert np.array_equal(ids[example["index"] + 1], example["labels"])
        assert len(example["labels"]) == target + 1 + (source + bos if supervise_source else 0)
        assert len(example["ids"]) == source + target + 1 + bos
        assert example["ids"][0] == (made.tokenizer.bos if bos else ids[0])


def test_the_source_is_the_prefix_of_the_mask(shards: ShardSet) -> None:
    made = record_objective("prefix_lm", shards, length=32)
    batch = made.collate([made.make(0, index) for index in (0, 1)])
    layout = batch.streams["src"].layout
    assert layout.prefix is not None
    assert layout.prefix.tolist() == [4, 2]
    seen = build_mask("prefix", layout).grid(8, torch.device("cpu"))
    assert seen is not None
    expected = torch.tensor(
        [[1, 1, 1, 1, 0, 0]] * 4 + [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    ).bool()
    assert torch.equal(seen[0, 0, :6, :6], expected)


def test_a_learned_source_is_never_seen_beforehand(shards: ShardSet) -> None:
    made = record_objective("prefix_lm", shards, length=32, supervise_source=True)
    batch = made.collate([made.make(0, 0)])
    assert batch.streams["src"].layout.prefix is None


def test_sources_are_cut_at_their_beginning(
    shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        made = record_objective("prefix_lm", shards, length=12)
    # The pair with 20 words to write has no room for any source.
    assert len(made) == 5
    assert words(shards, made.make(0, 2)["ids"]) == (
        "w20 w21 w22 w23 w24 w25 w26 [SEP] w27 w28 w29 w30"
    )
    assert [len(made.make(0, index)["ids"]) for index in range(5)] == [6, 3, 12, 11, 10]
    assert caplog.messages == [
        "objective `prefix_lm` leaves out 1 of 6 pairs, which do not fit length=12",
        "objective `prefix_lm` cuts 1 of 5 sources at their beginning to length=12",
    ]


def test_overlong_pairs_are_dropped_where_asked(
    shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    made = record_objective("prefix_lm", shards, length=11, overlong="drop")
    assert made.documents.tolist() == [0, 1, 4, 5]
    assert "leaves out 2 of 6 pairs" in caplog.text


@pytest.mark.parametrize("length", [8, 9, 12, 16, 32])
@pytest.mark.parametrize("overlong", ["cut", "drop"])
def test_d20_no_row_is_without_a_supervised_token(
    shards: ShardSet, length: int, overlong: str
) -> None:
    made = record_objective("prefix_lm", shards, length=length, overlong=overlong)
    for index in range(len(made)):
        example = made.make(0, index)
        assert len(example["labels"]) > 1
        assert len(example["ids"]) <= length
        assert example["prefix"][0] >= 2


def test_where_no_pair_fits_the_way_out_is_told(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "pair", some_pairs([(2, 9), (2, 8)]))
    with pytest.raises(DataError, match=r"2 of 2 pairs, .* raise model\.objective\.length"):
        record_objective("prefix_lm", shards, length=8)


def test_other_data_is_refused(tmp_path: Path) -> None:
    text = record_shards(tmp_path, "label", "0\tw0\n", name="text")
    with pytest.raises(DataError, match=r"than the label .* corpus\.content=pair"):
        record_objective("prefix_lm", text)
    second = {"name": "space", "vocab": str(tmp_path / "vocab.txt")}
    pair = record_shards(tmp_path, "pair", "w0\tw1\n", name="two", target_tokenizer=second)
    with pytest.raises(DataError, match="preprocess without target_tokenizer"):
        record_objective("prefix_lm", pair)
