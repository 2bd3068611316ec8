from pathlib import Path

import numpy as np
import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.errors import DataError
from tencentpretrain.tasks.base import Inputs
from tencentpretrain.tasks.text import RaggedBuilder, RowFormat, check_length
from tests.tasks import toy

ID = {piece: number for number, piece in enumerate(toy.VOCABULARY)}
CLS, SEP = ID["[CLS]"], ID["[SEP]"]


def ids(text: str) -> list[int]:
    return [ID[piece] for piece in text.split()]


def test_a_single_text(tmp_path: Path) -> None:
    rows = RowFormat(toy.inputs(tmp_path), 8).singles(["good film", "", "the " * 20, "playing"])
    assert [rows.ids[row].tolist() for row in range(len(rows))] == [
        [CLS, *ids("good film"), SEP],
        [CLS, SEP],
        [CLS, *ids("the " * 6), SEP],
        [CLS, *ids("play ##ing"), SEP],
    ]
    assert not rows.make(0)["segments"].any()


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (2, 2, (2, 2)),
        (1, 9, (1, 6)),
        (9, 1, (6, 1)),
        (9, 9, (4, 3)),
        (0, 9, (0, 7)),
        (4, 4, (4, 3)),
    ],
)
def test_the_longer_text_of_a_pair_is_cut(
    tmp_path: Path, first: int, second: int, kept: tuple[int, int]
) -> None:
    rows = RowFormat(toy.inputs(tmp_path), 10).pairs(["good " * first], ["bad " * second])
    example = rows.make(0)
    good, bad = ids("good " * kept[0]), ids("bad " * kept[1])
    assert example["ids"].tolist() == [CLS, *good, SEP, *bad, SEP]
    assert example["segments"].tolist() == [False] * (len(good) + 2) + [True] * (len(bad) + 1)


def test_models_with_one_segment_get_no_other(tmp_path: Path) -> None:
    parts = {"word": {}, "segment": {"types": 1}}
    inputs = toy.inputs(tmp_path, embedding={"parts": parts})
    assert not RowFormat(inputs, 10).pairs(["good"], ["bad"]).make(0)["segments"].any()


def test_places_of_words(tmp_path: Path) -> None:
    sentences = [["good", "playing", "film"], [], ["the"] * 9, ["film"] * 5 + ["playing"]]
    rows, places = RowFormat(toy.inputs(tmp_path), 8).sentences(sentences)
    assert [places[row].tolist() for row in range(4)] == [
        [1, 2, 4],
        [],
        [1, 2, 3, 4, 5, 6],
        # The last word begins inside the row, although its second piece is cut.
        [1, 2, 3, 4, 5, 6],
    ]
    assert rows.ids[0].tolist() == [CLS, *ids("good play ##ing film"), SEP]
    assert rows.ids[1].tolist() == [CLS, SEP]
    assert rows.ids[3].tolist() == [CLS, *ids("film film film film film play"), SEP]


def test_rows_are_padded_to_the_longest_of_their_batch(tmp_path: Path) -> None:
    rows = RowFormat(toy.inputs(tmp_path), 20).singles(["good", "the " * 8, "the " * 30])
    short, middle, long = (rows.make(row) for row in range(3))
    stream = rows.stream([short, middle])
    assert stream.layout.valid.sum(1).tolist() == [3, 10]
    assert stream.layout.valid.shape == (2, 16)
    assert stream.inputs["ids"][0, 3:].tolist() == [ID["[PAD]"]] * 13
    assert stream.inputs["ids"].dtype == torch.int64
    assert rows.stream([long]).layout.valid.shape == (1, 20)
    assert rows.stream([long]).layout.is_full


def character_inputs(folder: Path, entries: list[str]) -> Inputs:
    path = toy.write(folder / "characters.txt", entries)
    from tencentpretrain.tokenizers.base import TOKENIZERS, build_tokenizer

    config = decode(TOKENIZERS.config_class("character"), {"name": "character", "vocab": path})
    return Inputs(toy.inputs(folder).model, build_tokenizer(config))


def test_rows_without_special_tokens_are_not_empty(tmp_path: Path) -> None:
    row_format = RowFormat(character_inputs(tmp_path, ["[UNK]", "a", "b"]), 8)
    rows = row_format.singles(["ab", ""])
    assert [rows.ids[0].tolist(), rows.ids[1].tolist()] == [[1, 2], [0]]
    assert row_format.pairs(["a"], ["b"]).ids[0].tolist() == [1, 2]


def test_a_text_task_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no tokenizer"):
        RowFormat(Inputs(toy.inputs(tmp_path).model, None), 8)


def test_rows_must_fit_the_table_of_positions(tmp_path: Path) -> None:
    model = toy.inputs(tmp_path).model
    check_length(64, model)
    with pytest.raises(ConfigError, match=r"task\.length: must be at most .*length=64, but is 65"):
        check_length(65, model)


def test_overlong_texts_are_cut_before_they_cost_memory(tmp_path: Path) -> None:
    texts = ["the " * 500_000, "good"]
    rows = RowFormat(toy.inputs(tmp_path), 8).singles(texts)
    assert rows.ids.lengths.tolist() == [8, 3]


def test_ragged_rows() -> None:
    builder = RaggedBuilder()
    for row in ([1, 2], [], [3]):
        builder.append(row)
    ragged = builder.build()
    assert [ragged[row].tolist() for row in range(len(ragged))] == [[1, 2], [], [3]]
    assert ragged.lengths.tolist() == [2, 0, 1]
    assert len(RaggedBuilder().build()) == 0
    assert ragged.flat.dtype == np.int32
