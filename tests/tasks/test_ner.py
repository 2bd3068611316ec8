from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tencentpretrain.errors import DataError
from tencentpretrain.tasks.ner import NerTask, join_words
from tencentpretrain.types import IGNORE
from tests.tasks import toy

ROWS = [
    "text_a\tlabel",
    "anna smith was in rome\tB-PER I-PER O O B-LOC",
    "the night\tO O",
]


def learned(path: Path, **keys: Any) -> NerTask:
    task = toy.task("ner", **keys)
    assert isinstance(task, NerTask)
    task.learn(task.read(path, True))
    return task


def test_tags_are_learned_and_come_back(tmp_path: Path) -> None:
    task = learned(toy.write(tmp_path / "a.tsv", ROWS))
    # I-LOC does not occur, but other data with places may have it.
    assert task.state() == {"tags": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]}
    other = toy.task("ner")
    other.load_state(task.state())
    assert other.state() == task.state()


def test_the_first_piece_speaks_for_a_word(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "a.tsv", [*ROWS, "playing unknown rome\tO B-PER B-LOC"])
    task = learned(path)
    examples = task.examples(task.read(path, True), toy.inputs(tmp_path), True)
    batch = examples.collate([examples.make(0, 1), examples.make(0, 2)])
    width = batch.streams["src"].layout.valid.shape[1]
    assert batch.labels["tag"].values.tolist() == [0, 0, 0, 3, 1]
    assert batch.labels["tag"].index is not None
    assert batch.labels["tag"].index.tolist() == [1, 2, width + 1, width + 3, width + 5]
    unlabelled = task.examples(task.read(path, False), toy.inputs(tmp_path), False)
    batch = unlabelled.collate([unlabelled.make(0, 2)])
    assert batch.labels["tag"].values.tolist() == [IGNORE] * 3


def test_words_behind_the_end_of_a_row_count_as_outside(tmp_path: Path) -> None:
    path = toy.write(
        tmp_path / "a.tsv", [*ROWS, "the film was seen by anna in rome\tO O O O O B-PER O B-LOC"]
    )
    task = learned(path, length=8)
    rows = task.read(path, True)[2:]
    examples = task.examples(rows, toy.inputs(tmp_path), True)
    assert len(examples.make(0, 0)["index"]) == 6
    outputs = [np.array([0, 0, 0, 0, 0, 3])]
    assert task.metrics(examples, outputs) == {
        "accuracy": 7 / 8,
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
    }
    answer = next(iter(task.decode(rows, examples, outputs)))
    assert answer == {
        "label": "O O O O O B-PER O O",
        "entities": [{"text": "anna", "type": "PER", "start": 5, "end": 6}],
    }


def test_sentences_without_words(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "a.tsv", [*ROWS, "\t"])
    task = learned(path)
    examples = task.examples(task.read(path, True), toy.inputs(tmp_path), True)
    batch = examples.collate([examples.make(0, 2)])
    assert batch.labels["tag"].values.tolist() == []
    answers = list(task.decode(task.read(path, True)[2:], examples, [np.array([], np.int64)]))
    assert answers == [{"label": "", "entities": []}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("anna smith\tB-PER", r"line 2 must have one tag .* 2 words and 1 tags"),
        ("anna\tPER", "line 2: a tag must be O or have the form B-KIND"),
        ("anna\tB-", "line 2: a tag must be"),
        ("the\tO", "no tag but O"),
    ],
)
def test_unusable_tags(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        learned(toy.write(tmp_path / "a.tsv", ["text_a\tlabel", row]))


def test_an_unseen_tag_is_named(tmp_path: Path) -> None:
    task = learned(toy.write(tmp_path / "a.tsv", ROWS))
    path = toy.write(tmp_path / "dev.tsv", ["text_a\tlabel", "the day\tO B-TIME"])
    with pytest.raises(DataError, match=r"dev\.tsv, line 2: the label `B-TIME`"):
        task.examples(task.read(path, True), toy.inputs(tmp_path), True)


def test_words_are_between_plain_spaces(tmp_path: Path) -> None:
    rows = ["text_a\tlabel", "anna  smith \u3000\tB-PER  I-PER O"]
    task = learned(toy.write(tmp_path / "a.tsv", rows))
    examples = task.examples(task.read(tmp_path / "a.tsv", True), toy.inputs(tmp_path), True)
    assert examples.words.tolist() == [3]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["New", "York"], "New York"),
        (["青", "岛", "，"], "青岛，"),
        (["在", "New", "York", "城"], "在New York城"),
        (["서울", "시"], "서울 시"),
        ([], ""),
    ],
)
def test_words_are_joined_as_their_script_does(words: list[str], text: str) -> None:
    assert join_words(words) == text


def test_conll_files(tmp_path: Path) -> None:
    content = "-DOCSTART- -X- O\n\nanna NN B-PER\nsmith NN I-PER\n\n\nthe\tDT\tO\n"
    path = tmp_path / "a.conll"
    path.write_text(content)
    task = learned(path)
    rows = task.read(path, True)
    assert [(row["text_a"], row["label"], row.line) for row in rows] == [
        ("anna smith", "B-PER I-PER", 3),
        ("the", "O", 7),
    ]
    path.write_text("anna\nsmith\n")
    assert not task.has_labels(task.read(path, False))
    with pytest.raises(DataError, match="line 1 must have a word and its tag"):
        task.read(path, True)
    path.write_text("anna B-PER\nsmith\n")
    with pytest.raises(DataError, match="line 2 must have 2 columns: smith"):
        task.read(path, True)


def test_lists_of_words_in_json(tmp_path: Path) -> None:
    path = toy.write(
        tmp_path / "a.jsonl", ['{"text_a": ["anna", "smith"], "label": ["B-PER", "I-PER"]}']
    )
    task = learned(path)
    assert task.read(path, True)[0]["label"] == "B-PER I-PER"
