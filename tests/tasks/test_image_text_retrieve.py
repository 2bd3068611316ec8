"""Images and texts that find each other, by two towers and in one row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.cli import main
from tencentpretrain.config import ConfigError, decode
from tencentpretrain.errors import DataError
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.tasks.base import Inputs
from tencentpretrain.tasks.image_text_retrieve import ImageTextTask
from tencentpretrain.tasks.inference import Machine, infer
from tests.helpers.models import model_config, randomise
from tests.helpers.pictures import class_folders, media_shards
from tests.tasks import toy

CLASSES = ("good", "bad", "dull")
TEMPLATES = ["the {label} film", "a {label} house"]
STACK = {"layers": 1, "heads": 2, "ffn": 32}
PATCH = {"image_size": 8, "patch_size": 4}
SMALL: dict[str, dict[str, Any]] = {
    "clip/tiny": {
        "hidden": 16,
        "encoder": STACK,
        "towers": {
            "image": {"hidden": 16, "embedding": {"parts": {"patch": PATCH}}, "encoder": STACK}
        },
        "target": {"contrast": {"size": 12}},
    },
    "vilt/tiny": {
        "hidden": 16,
        "encoder": STACK,
        "embedding": {"parts": {"concat": {"embeddings": {"image": {"parts": {"patch": PATCH}}}}}},
    },
}
OBJECTIVE = {"transform": {"size": 8, "resize": None, "crop": "center", "padding": 0, "flip": 0.0}}
MACHINE = Machine(torch.device("cpu"), torch.float32, 4)
kinds = pytest.mark.parametrize("name", SMALL)


def model_of(name: str) -> ModelConfig:
    return model_config(name, SMALL[name], {"objective": OBJECTIVE})


def task(**keys: Any) -> ImageTextTask:
    made = toy.task("image_text_retrieve", **keys)
    assert isinstance(made, ImageTextTask)
    return made


def ready(name: str, folder: Path, **keys: Any) -> tuple[ImageTextTask, Inputs, Model]:
    """A task, and a model with large random weights that does it."""
    config = model_of(name)
    inputs = Inputs(config, toy.tokenizer(folder))
    made = task(**keys)
    made.adopt(config)
    model = build_model(config, inputs.text_tokenizer().vocab_size)
    torch.manual_seed(0)
    randomise(model)
    return made, inputs, model.eval()


def captions(folder: Path) -> Path:
    """Six images; the first has two captions, and the last two have one."""
    images = sorted(class_folders(folder / "data", count=2, classes=CLASSES).rglob("*.png"))
    names = [f"data/{image.relative_to(folder / 'data')}" for image in images]
    texts = ["good film", "bad film", "dull house", "night and day", "a house", "a house"]
    rows = [*zip(names, texts, strict=True), (names[0], "lovely film")]
    return toy.write(folder / "list.tsv", ["path\ttext", *("\t".join(row) for row in rows)])


@kinds
def test_scores_are_those_of_each_pair_alone(tmp_path: Path, name: str) -> None:
    made, inputs, model = ready(name, tmp_path)
    rows = made.read(captions(tmp_path), True)
    examples = made.examples(rows, inputs, True)
    assert (len(examples.collection.images), len(examples.collection.texts)) == (6, 6)
    outputs, _ = infer(made, model, examples, MACHINE)
    scores = examples.scores(outputs)
    assert scores.shape == (6, 6)
    for number, row in enumerate(rows):
        alone = made.examples([row], inputs, True)
        one, _ = infer(made, model, alone, MACHINE)
        image, text = examples.collection.pairs[number]
        np.testing.assert_allclose(scores[image, text], alone.scores(one)[0, 0], rtol=1e-4)


@kinds
def test_everything_that_belongs_together_counts(tmp_path: Path, name: str) -> None:
    made, inputs, model = ready(name, tmp_path)
    rows = made.read(captions(tmp_path), True)
    examples = made.examples(rows, inputs, True)
    relevant = examples.collection.relevant()
    assert relevant.sum(1).tolist() == [2, 1, 1, 1, 1, 1]
    assert sorted(relevant.sum(0).tolist()) == [1, 1, 1, 1, 1, 2]
    _, scores = infer(made, model, examples, MACHINE)
    assert set(scores) == {"recall"} | {
        f"{side}_recall@{depth}" for side in ("text", "image") for depth in (1, 5, 10)
    }
    assert scores["text_recall@10"] == scores["image_recall@10"] == 1.0
    assert made.score in scores


@kinds
def test_classes_are_told_by_the_mean_of_their_texts(tmp_path: Path, name: str) -> None:
    made, inputs, model = ready(name, tmp_path, templates=TEMPLATES)
    rows = made.read(class_folders(tmp_path / "data", count=2, classes=CLASSES), True)
    made.learn(rows)
    examples = made.examples(rows, inputs, True)
    assert list(made.labels) == sorted(CLASSES)
    assert examples.collection.texts[:2] == ["the bad film", "a bad house"]
    outputs, scores = infer(made, model, examples, MACHINE)
    found = examples.scores(outputs)
    assert found.shape == (6, 3)
    if name == "clip/tiny":
        images, texts = np.split(np.stack(outputs), [6])
        np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
        mean = texts.reshape(3, 2, -1).mean(1)
        expected = images @ (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    right = found.argmax(1) == [sorted(CLASSES).index(row.label) for row in rows]
    assert scores["accuracy"] == pytest.approx(right.mean())
    answers = list(made.decode(rows, examples, outputs))
    assert [answer["label"] == row.label for answer, row in zip(answers, rows, strict=True)] == [
        *right
    ]
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1)


def test_training_pairs_vary_and_evaluation_does_not(tmp_path: Path) -> None:
    made, inputs, _ = ready("vilt/tiny", tmp_path, templates=TEMPLATES)
    rows = made.read(class_folders(tmp_path / "data", count=2, classes=CLASSES), True)
    made.learn(rows)
    examples = made.examples(rows, inputs, True)
    assert len(examples) == 6 * 6
    examples.vary(3)
    assert len(examples) == len(rows)
    drawn = [examples.make(epoch, index) for epoch in range(30) for index in range(6)]
    matches = np.concatenate([example["match"] for example in drawn])
    # Half are drawn, and a third of those are of the same class.
    assert matches.mean() == pytest.approx(2 / 3, abs=0.12)
    own = [examples._fit(number).tobytes() for number in range(6)]
    for place, example in enumerate(drawn):
        shown = own.index(example["pixels"].tobytes())
        belongs = rows[shown].label == rows[place % 6].label
        assert bool(example["match"][0]) == belongs
    assert len({tuple(example["ids"].tolist()) for example in drawn}) == 6


def test_wrong_use_is_told(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data", count=1, classes=CLASSES)
    with pytest.raises(ConfigError, match=r"templates must hold \{label\}, but `a film` does not"):
        task(templates=["a film"])
    with pytest.raises(ConfigError, match="labels need templates"):
        task(labels=["a"])
    with pytest.raises(ConfigError, match=r"must compare images with texts.* clip/base_32"):
        task().adopt(decode(ModelConfig, toy.MODEL))
    with pytest.raises(ConfigError, match=r"must be 8, as the model reads, but is 16"):
        task(transform={"size": 16}).adopt(model_of("clip/tiny"))
    with pytest.raises(ConfigError, match=r"task.length: must be at most 32"):
        task(length=33).adopt(model_of("vilt/tiny"))
    with pytest.raises(DataError, match=r"there is no a text|there is no text"):
        task().read(folder, True)
    with pytest.raises(DataError, match="has no label; put images into folders"):
        task(templates=TEMPLATES).read(folder / "good", True)
    made, inputs, _ = ready("clip/tiny", tmp_path, templates=TEMPLATES)
    with pytest.raises(ConfigError, match=r"task.labels: must be given"):
        made.examples(made.read(folder / "good", False), inputs, False)
    one_class = {"target": {"match": {"classes": 1}}, "objective": OBJECTIVE}
    with pytest.raises(ConfigError, match="must be 2 to be trained"):
        task().targets(model_config("vilt/tiny", SMALL["vilt/tiny"], one_class))


def words(folder: Path, **keys: Any) -> list[str]:
    settings = {"trainer.batch_size": 6, "parallel.device": "cpu", "optim.lr": 0.003}
    settings |= {"trainer.precision": "fp32", **keys}
    return [f"{key}={value}" for key, value in settings.items()]


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def answers(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@kinds
def test_from_files_to_predictions(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pre-train, tell classes by their names, fine-tune, and predict with what came of it."""
    images = class_folders(tmp_path / "data", count=8, classes=CLASSES[:2])
    vocabulary = {"name": "wordpiece", "vocab": str(toy.vocabulary(tmp_path))}
    media_shards(tmp_path / "shards", images, "image_text", tokenizer=vocabulary,
                 corpus_caption="the {label} film")  # fmt: skip
    plain = tmp_path / "model.yaml"
    plain.write_text(json.dumps(model_of(name).to_dict()))
    start = {"model": plain, "data.path": tmp_path / "shards", "run_dir": tmp_path / "pre"}
    assert main("pretrain", words(tmp_path, **start, **{"trainer.steps": 4})) == 0
    ask = ["task=image_text_retrieve", 'task.templates=["the {label} film"]']
    test = f"data.test={images}"
    adopted = [f"checkpoint={tmp_path / 'pre'}", *ask, test, f"output={tmp_path / 'zero.tsv'}"]
    with caplog.at_level("INFO"):
        assert main("predict", adopted) == 0
    assert "test/accuracy" in caplog.text
    assert len(answers(tmp_path / "zero.tsv")) == 16
    tune = {"init": tmp_path / "pre", "data.train": images, "data.dev": images}
    # Reading both in one row needs more examples than a test has time for.
    steps = 40 if name == "clip/tiny" else 4
    run = {"run_dir": tmp_path / "run", "trainer.steps": steps, "trainer.eval_every": 20}
    assert main("finetune", [*words(tmp_path, **tune, **run), *ask]) == 0
    best = max(record.get("eval/accuracy", 0) for record in records(tmp_path / "run"))
    assert best == 1 if name == "clip/tiny" else best >= 0.5
    chosen = [f"checkpoint={tmp_path / 'run'}", test, f"output={tmp_path / 'answers.tsv'}"]
    assert main("predict", chosen) == 0
    rows = answers(tmp_path / "answers.tsv")
    right = [row["label"] == row["path"].split("/")[0] for row in rows]
    assert (len(rows), sum(right) / 16) == (16, best)
    assert main("predict", [*chosen, "task=image_text_retrieve", "overwrite=true"]) == 2


@pytest.mark.parametrize("check_files", [True, False])
def test_bad_images_are_told_before_anything_is_computed(tmp_path: Path, check_files: bool) -> None:
    path = captions(tmp_path)
    bad = next((tmp_path / "data").rglob("*.png"))
    bad.write_bytes(bad.read_bytes()[:60])
    made = task(check_files=check_files)
    if check_files:
        with pytest.raises(DataError, match=r"list.tsv, line \d, `data/.*`: the image is dam"):
            made.read(path, True)
    else:
        assert len(made.read(path, True)) == 7
    bad.unlink()
    with pytest.raises(DataError, match=r"list.tsv, line \d, .*there is no file"):
        made.read(path, True)


def test_keys_count_more_than_what_was_learned(tmp_path: Path) -> None:
    """Those that are given, and no others: means of the pixels stay those of training."""
    config = model_of("clip/tiny")
    learned = task(transform={"mean": [0.1, 0.2, 0.3]}, templates=TEMPLATES, labels=["a", "b"])
    learned.adopt(config)
    state = json.loads(json.dumps(learned.state()))
    assert state["transform"]["crop"] == "center"
    given = {"size": 8, "resize": 9, "interpolation": "bilinear"}
    again = task(transform=given, templates=TEMPLATES, labels=["c", "d"], length=9)
    again.load_state(state)
    inputs = Inputs(config, toy.tokenizer(tmp_path))
    rows = again.read(class_folders(tmp_path / "data", count=1), False)
    again.examples(rows, inputs, False)
    assert again.transform is not None
    assert (again.transform.resize, again.transform.mean) == (9, (0.1, 0.2, 0.3))
    assert (list(again.labels), again.length) == (["c", "d"], 9)
    # A later fine-tuning of the run goes on with the same pixels.
    later = task()
    later.inherit(state)
    later.adopt(config.model_copy(update={"objective": None}))
    assert later.state()["transform"] == state["transform"]
