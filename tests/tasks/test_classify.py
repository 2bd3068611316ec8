from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.config import ConfigError
from tencentpretrain.errors import DataError
from tencentpretrain.model import build_model
from tencentpretrain.tasks.classify import ClassifyTask
from tests.tasks import toy

ROWS = ["label\ttext_a\ttext_b", "b\tgood film\tthe day", "a\tbad film\tthe night"]


def learned(path: Path, **keys: Any) -> ClassifyTask:
    task = toy.task("classify", **keys)
    assert isinstance(task, ClassifyTask)
    task.learn(task.read(path, True))
    return task


def test_labels_are_learned_and_come_back(tmp_path: Path) -> None:
    task = learned(toy.write(tmp_path / "a.tsv", ROWS))
    assert task.state() == {"labels": ["a", "b"], "is_pair": True}
    other = toy.task("classify")
    other.load_state(task.state())
    assert other.state() == task.state()


def test_d63_columns_have_any_name(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "a.tsv", ["class\tquestion\treply", "1\ta\tb", "2\tc\td"])
    keys = {"label_column": "class", "text_a_column": "question", "text_b_column": "reply"}
    task = learned(path, **keys)
    assert task.state() == {"labels": ["1", "2"], "is_pair": True}
    assert [task.key(row) for row in task.read(path, False)] == ["a\tb", "c\td"]


def test_a_second_text_can_be_left_out(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "a.tsv", ROWS)
    task = learned(path, text_b_column=None)
    assert task.is_pair is False
    examples = task.examples(task.read(path, True), toy.inputs(tmp_path), True)
    assert [len(examples.make(0, row)["ids"]) for row in range(2)] == [4, 4]


def test_examples(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "a.tsv", ROWS)
    task = learned(path)
    examples = task.examples(task.read(path, True), toy.inputs(tmp_path), True)
    batch = examples.collate([examples.make(0, row) for row in range(len(examples))])
    assert batch.labels["classify"].values.tolist() == [1, 0]
    assert batch.tokens == 14
    assert batch.streams["src"].inputs["segments"].sum(1).tolist() == [3, 3]
    unlabelled = task.examples(task.read(path, False), toy.inputs(tmp_path), False)
    assert unlabelled.collate([unlabelled.make(0, 0)]).labels == {}


def test_every_file_must_have_the_second_text(tmp_path: Path) -> None:
    task = learned(toy.write(tmp_path / "a.tsv", ROWS))
    path = toy.write(tmp_path / "b.tsv", ["label\ttext_a", "a\tfilm"])
    with pytest.raises(DataError, match="no column `text_b`"):
        task.read(path, False)


def test_unlabelled_files_are_read(tmp_path: Path) -> None:
    task = learned(toy.write(tmp_path / "a.tsv", ROWS))
    rows = task.read(toy.write(tmp_path / "b.tsv", ["text_b\ttext_a", "film\tgood"]), False)
    assert not task.has_labels(rows)
    assert rows[0]["text_a"] == "good"
    with pytest.raises(DataError, match="no column `label`"):
        task.read(tmp_path / "b.tsv", True)


def test_d63_an_unseen_label_is_named(tmp_path: Path) -> None:
    task = learned(toy.write(tmp_path / "a.tsv", ROWS))
    path = toy.write(tmp_path / "dev.tsv", [*ROWS, "c\tx\ty"])
    with pytest.raises(DataError, match=r"dev\.tsv, line 4: the label `c` is not in the training"):
        task.examples(task.read(path, True), toy.inputs(tmp_path), True)


def test_one_label_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all rows of .* have the label `b`"):
        learned(toy.write(tmp_path / "a.tsv", ROWS[:2]))


def test_the_head_fits_the_model(tmp_path: Path) -> None:
    task = learned(toy.write(tmp_path / "a.tsv", ROWS), length=64)
    head = task.targets(toy.inputs(tmp_path).model)["classify"]
    assert (head.classes, head.pooling) == (2, "first")  # type: ignore[attr-defined]
    encoder = toy.MODEL["encoder"] | {"mask": "causal"}
    causal = toy.inputs(tmp_path, encoder=encoder, objective=None).model
    # The first position of a causal model has seen nothing but itself.
    assert task.targets(causal)["classify"].pooling == "last"  # type: ignore[attr-defined]
    long = learned(tmp_path / "a.tsv", length=65)
    with pytest.raises(ConfigError, match=r"task\.length"):
        long.targets(toy.inputs(tmp_path).model)


def test_outputs_are_probabilities_of_the_right_rows(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "a.tsv", ROWS)
    task = learned(path)
    inputs = toy.inputs(tmp_path, target={"classify": {"classes": 2}}, objective=None, ties={})
    model = build_model(inputs.model, len(toy.VOCABULARY)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    rows = task.read(path, True)
    examples = task.examples(rows, inputs, True)
    batch = examples.collate([examples.make(0, 0), examples.make(0, 1)])
    with torch.no_grad():
        losses, outputs = task.infer(model, batch, True)
        logits = model.target["classify"].logits(model.encode(batch), batch)
    assert losses is not None
    assert np.allclose(outputs, logits.softmax(-1))
    expected = -np.log(outputs[0][1]) - np.log(outputs[1][0])
    assert losses.losses["classify"].total.item() == pytest.approx(expected, rel=1e-5)
    answers = list(task.decode(rows, examples, outputs))
    assert answers[0]["probabilities"] == dict(zip("ab", outputs[0].tolist(), strict=True))
    assert answers[0]["probability"] == max(answers[0]["probabilities"].values())
    scores = task.metrics(examples, [np.array([0.1, 0.9]), np.array([0.1, 0.9])])
    assert scores == {"accuracy": 0.5, "f1": pytest.approx(1 / 3)}
