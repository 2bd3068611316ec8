from pathlib import Path

import pytest

from tencentpretrain.errors import DataError
from tests.helpers.records import record_objective, record_shards, some_pairs, words


def test_each_text_has_a_row_of_its_own(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "pair", some_pairs([(3, 2), (1, 12)]))
    made = record_objective("pairs", shards, length=8)
    assert made.supervises == ("contrast",)
    batch = made.collate([made.make(0, index) for index in range(2)])
    found = {
        name: [
            words(shards, ids[valid])
            for ids, valid in zip(stream.inputs["ids"], stream.layout.valid, strict=True)
        ]
        for name, stream in batch.streams.items()
    }
    assert found == {
        "src": ["[CLS] w0 w1 w2 [SEP]", "[CLS] w5 [SEP]"],
        "pair": ["[CLS] w3 w4 [SEP]", "[CLS] w6 w7 w8 w9 w10 w11 [SEP]"],
    }
    assert batch.labels == {}
    assert batch.tokens == 5 + 3 + 4 + 8


def test_pairs_with_two_vocabularies_are_refused(tmp_path: Path) -> None:
    record_shards(tmp_path, "pair", "w0\tw1\n")
    second = {"name": "space", "vocab": str(tmp_path / "vocab.txt")}
    shards = record_shards(tmp_path, "pair", "w0\tw1\n", name="two", target_tokenizer=second)
    with pytest.raises(DataError, match="preprocess without target_tokenizer"):
        record_objective("pairs", shards)


def test_plain_text_is_refused_with_the_way_out(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "text", "w0 w1\n")
    with pytest.raises(DataError, match=r"`pairs` .* corpus\.content=pair"):
        record_objective("pairs", shards)
