import importlib
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.config import decode
from tencentpretrain.model import Model, build_model
from tencentpretrain.tasks.base import TASKS, Task, TaskExamples
from tencentpretrain.tasks.inference import Machine, evaluate, infer
from tests.tasks import toy

CPU = torch.device("cpu")


def prepared(folder: Path, name: str) -> tuple[Task[Any, Any], Model, TaskExamples]:
    """A task, a model with random but telling weights, and the examples of a file."""
    files = {"classify": toy.classify_files, "ner": toy.ner_files}[name](folder, (20, 21, 1))
    task = toy.task(name, length=12)
    task.learn(task.read(Path(files["train"]), True))
    head = task.targets(toy.inputs(folder).model)
    target = {key: config.to_dict() for key, config in head.items()}
    inputs = toy.inputs(folder, target=target, objective=None, ties={})
    model = build_model(inputs.model, len(toy.VOCABULARY))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return task, model, task.examples(task.read(Path(files["dev"]), True), inputs, True)


@pytest.mark.parametrize("name", ["classify", "ner"])
def test_neither_batches_nor_their_order_change_the_results(tmp_path: Path, name: str) -> None:
    task, model, examples = prepared(tmp_path, name)
    one_by_one = []
    model.eval()
    for index in range(len(examples)):
        with torch.no_grad():
            batch = examples.collate([examples.make(0, index)])
            one_by_one += task.infer(model, batch, True)[1]
    results = []
    for size in (1, 4, 64):
        outputs, scores = infer(task, model, examples, Machine(CPU, torch.float32, size))
        assert len(outputs) == len(examples)
        for output, expected in zip(outputs, one_by_one, strict=True):
            assert np.allclose(output, expected, atol=1e-5)
        results.append(scores)
    assert results[1:] == [pytest.approx(results[0])] * 2
    assert {"loss", "accuracy", "f1"} <= results[0].keys()


def test_the_loss_is_the_mean_over_the_file(tmp_path: Path) -> None:
    task, model, examples = prepared(tmp_path, "classify")
    outputs, scores = infer(task, model, examples, Machine(CPU, torch.float32, 4))
    labels: Any = examples.labels  # type: ignore[attr-defined]
    picked = [row[label] for row, label in zip(outputs, labels, strict=True)]
    assert scores["loss"] == pytest.approx(-np.log(picked).mean(), rel=1e-4)


def test_unlabelled_examples_have_outputs_and_no_scores(tmp_path: Path) -> None:
    task, model, examples = prepared(tmp_path, "ner")
    labelled, _ = infer(task, model, examples, Machine(CPU, torch.float32, 4))
    examples.tags, examples.is_labelled = None, False  # type: ignore[attr-defined]
    outputs, scores = infer(task, model, examples, Machine(CPU, torch.float32, 4))
    assert scores == {}
    assert [row.tolist() for row in outputs] == [row.tolist() for row in labelled]


def test_batches_hold_examples_of_similar_length(tmp_path: Path) -> None:
    task, model, examples = prepared(tmp_path, "classify")
    widths: list[int] = []
    collate = examples.collate

    def watched(rows: list[Any]) -> Any:
        batch = collate(rows)
        widths.append(batch.streams["src"].layout.valid.shape[1])
        return batch

    examples.collate = watched  # type: ignore[method-assign]
    done: list[int] = []
    infer(task, model, examples, Machine(CPU, torch.float32, 2), done.append)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]
    assert done == [*range(2, 21, 2), 21]


def test_evaluation_names_its_results(tmp_path: Path) -> None:
    task, model, examples = prepared(tmp_path, "classify")
    results = evaluate(task, model, examples, Machine(CPU, torch.float32, 8), "test")
    assert results.keys() == {"test/loss", "test/accuracy", "test/f1"}
    assert not model.training


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_says_what_an_engine_asks(name: str) -> None:
    cls = TASKS.get(name)
    assert cls.heads
    assert cls.score
    undocumented = [
        key for key, field in TASKS.config_class(name).model_fields.items() if not field.description
    ]
    assert undocumented == []


def test_a_task_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
    from tencentpretrain.tasks.base import TASKS
    from tencentpretrain.tasks.classify import ClassifyTask

    @TASKS.register("shout")
    class ShoutTask(ClassifyTask):
        def decode(self, rows, examples, outputs):
            for answer in super().decode(rows, examples, outputs):
                yield {"label": answer["label"].upper()}
    """
    (tmp_path / "own_tasks.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(TASKS, "_classes", {**TASKS._classes})
    importlib.import_module("own_tasks")
    task = TASKS.build(decode(TASKS.config_class("shout"), {"name": "shout"}))
    task.load_state({"labels": ["no", "yes"], "is_pair": False})
    assert list(task.decode([], None, [np.array([0.2, 0.8])])) == [{"label": "YES"}]
