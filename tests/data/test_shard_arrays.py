"""Bits by document, and checks of the columns that only records have."""

from pathlib import Path

import numpy as np
import pytest

from tencentpretrain.data.checksum import file_checksum
from tencentpretrain.data.shards import open_shards
from tencentpretrain.errors import DataError
from tests.data.test_shards import edit_index, set_key
from tests.helpers.records import json_lines, record_shards, some_chats

SIZES = [(1 + number % 7, 1 + number % 5) for number in range(97)]


def test_where_the_first_bit_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = some_chats(SIZES) + json_lines(
        [{"messages": [{"role": "assistant", "content": "w1"}]}]
    )
    shards = record_shards(tmp_path, "chat", corpus, shard_tokens=300, corpus_template="plain")
    rows = [shards.column("supervised", number) for number in range(shards.documents)]
    for bits_at_once in (1, 50, 1 << 20):
        monkeypatch.setattr("tencentpretrain.data.shard_arrays.BITS_AT_ONCE", bits_at_once)
        for start in (0, 1, 3, 9):
            expected = [
                start + int(row[start:].argmax()) if row[start:].any() else len(row) for row in rows
            ]
            assert np.array_equal(shards.first_set("supervised", start), expected)


PAIR, LABEL, TEXT = "w0 w1\tw2\nw3\tw4 w5\n", "x\tw0\ny\tw1\n", "w0\n"
WRONG = [
    ("pair", PAIR, ("target_vocab_size",), None, "its parts disagree"),
    ("pair", PAIR, ("target_vocab_size",), 14, r"token id 15, which .* vocabulary of 14 entries"),
    ("pair", PAIR, ("target_tokenizer",), "made up", "another tokenizer|holds no saved tokenizer"),
    ("label", LABEL, ("labels",), None, "its parts disagree"),
    ("label", LABEL, ("labels",), ["x"], "one of 1 labels for each document"),
    ("text", TEXT, ("labels",), ["x"], "its parts disagree"),
    ("text", TEXT, ("target_tokenizer",), "made up", "its parts disagree"),
]


@pytest.mark.parametrize(("content", "corpus", "path", "value", "message"), WRONG)
def test_an_index_that_does_not_fit_the_columns_is_refused(
    tmp_path: Path, content: str, corpus: str, path: tuple, value: object, message: str
) -> None:
    record_shards(tmp_path, content, corpus)
    edit_index(tmp_path / "shards", set_key(*path, to=value))
    with pytest.raises(DataError, match=message):
        open_shards(tmp_path / "shards")


@pytest.mark.parametrize("numbers", [[0, 2], [-1, 0]])
def test_numbers_without_a_label_are_found(tmp_path: Path, numbers: list[int]) -> None:
    record_shards(tmp_path, "label", LABEL)
    path = tmp_path / "shards" / "00000.label.npy"
    np.save(path, np.array(numbers, np.int32))
    checksum = set_key("files", path.name, "checksum", to=file_checksum(path))
    edit_index(tmp_path / "shards", checksum)
    with pytest.raises(DataError, match="must hold one of 2 labels for each document"):
        open_shards(tmp_path / "shards")


def test_shards_of_text_have_nothing_of_records(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "text", TEXT)
    index = (tmp_path / "shards" / "index.json").read_text()
    assert not any(key in index for key in ("target", "labels", "supervised"))
    assert shards.labels == []
    assert shards.target_vocab_size == shards.vocab_size
    assert shards.target_fingerprint == shards.tokenizer_fingerprint
