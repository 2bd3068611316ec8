"""Fine-tuning a model to tell images apart, from folders, archives and lists."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.cli import main
from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.media.transforms import ImageTransformConfig
from tencentpretrain.data.objectives.image import ImageObjective
from tencentpretrain.errors import DataError
from tencentpretrain.model import ModelConfig
from tencentpretrain.tasks.base import Inputs
from tencentpretrain.tasks.image_classify import ImageClassifyTask
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.train.predict import load_predictor
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tests.helpers.pictures import class_folders
from tests.tasks import toy

MODEL: dict[str, Any] = {
    "hidden": 16,
    "embedding": {
        "parts": {"patch": {"image_size": 8, "patch_size": 4}, "patch_position": {}},
        "norm": "none",
        "dropout": 0.0,
    },
    "encoder": {"layers": 1, "heads": 2, "ffn": 32, "norm_order": "pre", "dropout": 0.0},
}
INPUTS = Inputs(decode(ModelConfig, MODEL), None)
SMALL = {"size": 8}
MACHINE = Machine(torch.device("cpu"), torch.float32, 4)


def task(**keys: Any) -> ImageClassifyTask:
    made = toy.task("image_classify", **{"transform": SMALL, **keys})
    assert isinstance(made, ImageClassifyTask)
    return made


def forms(folder: Path) -> dict[str, Path]:
    """The same images in a folder, a tar file and lists."""
    data = class_folders(folder / "data", count=3)
    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.add(data, "train")
    files = sorted(data.rglob("*.png"))
    rows = [(file.parent.name, f"data/{file.relative_to(data)}") for file in files]
    lines = [f"{label}\t{path}" for label, path in rows]
    (folder / "original.tsv").write_text("\n".join(lines))
    (folder / "named.tsv").write_text("\n".join(["label\tpath", *lines]))
    objects = [json.dumps({"path": path, "label": label}) for label, path in rows]
    (folder / "a.jsonl").write_text("\n".join(objects))
    names = ("a.tar", "original.tsv", "named.tsv", "a.jsonl")
    return {"data": data, **{name: folder / name for name in names}}


@pytest.mark.parametrize("form", ["data", "a.tar", "original.tsv", "named.tsv", "a.jsonl"])
def test_images_are_read_from_every_form(tmp_path: Path, form: str) -> None:
    path, learned = forms(tmp_path)[form], task()
    rows = learned.read(path, True)
    learned.learn(rows)
    assert list(learned.labels) == ["blue", "red"]
    examples = learned.examples(rows, INPUTS, True)
    made = sorted(
        (int(example["row_label"][0]), example["pixels"].tobytes())
        for example in (examples.make(0, index) for index in range(len(rows)))
    )
    folder = learned.examples(learned.read(tmp_path / "data", True), INPUTS, True)
    expected = [folder.make(0, index) for index in range(6)]
    assert made == sorted((int(e["row_label"][0]), e["pixels"].tobytes()) for e in expected)
    assert len(learned.fingerprint(path)) == 64


def test_examples_vary_only_in_training(tmp_path: Path) -> None:
    learned = task(mix={"mixup": 1.0})
    rows = learned.read(class_folders(tmp_path / "data", count=3), True)
    learned.learn(rows)
    examples = learned.examples(rows, INPUTS, True)
    assert np.array_equal(examples.make(0, 0)["pixels"], examples.make(1, 0)["pixels"])
    assert examples.collate([examples.make(0, 5)]).labels["classify"].values.tolist() == [1]
    examples.vary(7)
    assert not np.array_equal(examples.make(0, 0)["pixels"], examples.make(1, 0)["pixels"])
    assert examples.collate([examples.make(0, 5)]).labels["classify"].values.shape == (1, 2)
    unlabelled = learned.examples(rows, INPUTS, False)
    assert unlabelled.collate([unlabelled.make(0, 0)]).labels == {}


@pytest.mark.parametrize("check_files", [True, False])
def test_bad_images_are_told_before_training(tmp_path: Path, check_files: bool) -> None:
    folder = class_folders(tmp_path / "data", count=2)
    (folder / "red" / "bad.png").write_bytes((folder / "red" / "000.png").read_bytes()[:80])
    read = task(check_files=check_files)
    if check_files:
        with pytest.raises(DataError, match=r"red/bad.png: the image is damaged or cut"):
            read.read(folder, True)
    else:
        assert len(read.read(folder, True)) == 5
    (tmp_path / "a.tsv").write_text("label\tpath\nred\tdata/red/000.png\nred\tgone.png\n")
    with pytest.raises(DataError, match=r"a.tsv, line 3, `gone.png`: there is no file"):
        read.read(tmp_path / "a.tsv", True)


def test_labels_are_needed_to_train(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data", count=2)
    with pytest.raises(DataError, match="png has no label; put images into folders"):
        task().read(folder / "red", True)
    assert [row.label for row in task().read(folder / "red", False)] == ["", ""]
    learned = task()
    learned.load_state({"labels": ["blue", "green"]})
    with pytest.raises(DataError, match=r"red/000.png: the label `red` is not in the training"):
        learned.examples(learned.read(folder, True), INPUTS, True)


def test_the_model_must_read_such_images() -> None:
    with pytest.raises(ConfigError, match="must be 8, as the model reads, but is 16"):
        task(transform={"size": 16}).targets(INPUTS.model)
    with pytest.raises(ConfigError, match="must read images for task=image_classify"):
        task().targets(decode(ModelConfig, toy.MODEL))


@pytest.mark.parametrize("class_token", [True, False])
def test_the_head_reads_what_stands_for_the_image(class_token: bool) -> None:
    patch = {"image_size": 8, "patch_size": 4, "class_token": class_token}
    embedding = {**MODEL["embedding"], "parts": {"patch": patch, "patch_position": {}}}
    learned = task()
    learned.load_state({"labels": ["a", "b", "c"]})
    head = learned.targets(decode(ModelConfig, {**MODEL, "embedding": embedding}))["classify"]
    assert (head.classes, head.pooling) == (3, "first" if class_token else "mean")  # type: ignore[attr-defined]


PIXELS = {"linear_pixels": {}}
CODES = {"mlm": {"dense": False}}
FIRST = {"name": "classify", "classes": 2, "dense": False}
OWN = FIRST | {"pooling": "rest", "norm": "layer"}
BEIT = {"classify": {"classes": 2, "pooling": "rest", "norm": "layer", "norm_eps": 1e-6}}


@pytest.mark.parametrize(
    ("target", "keys"),
    [
        (PIXELS, ("rest", "none")),
        (CODES, ("rest", "none")),
        ({"classify": {"classes": 2}}, ("first", "none")),
        (CODES | {"match": {"name": "classify", "classes": 2}}, ("first", "none")),
        (BEIT, ("rest", "layer")),
        ({"classify": {"name": "distill", "teacher": "t", "inner": FIRST}}, ("first", "none")),
        ({"classify": {"name": "distill", "teacher": "t", "inner": OWN}}, ("rest", "layer")),
        ({}, ("first", "none")),
    ],
)
def test_the_head_reads_what_earlier_training_has_filled(
    target: dict[str, Any], keys: tuple[str, str]
) -> None:
    patch = {"image_size": 8, "patch_size": 4, "mask_token": True}
    embedding = {**MODEL["embedding"], "parts": {"patch": patch, "patch_position": {}}}
    content = {**MODEL, "embedding": embedding, "target": target, "objective": None}
    learned = task()
    learned.load_state({"labels": ["a", "b", "c"]})
    head: Any = learned.targets(decode(ModelConfig, content))["classify"]
    assert (head.classes, head.dense, head.pooling, head.norm) == (3, False, *keys)


def test_images_that_no_task_makes_are_told() -> None:
    patch = {"image_size": [8, 16], "patch_size": 4}
    embedding = {**MODEL["embedding"], "parts": {"patch": patch, "patch_position": {}}}
    model = decode(ModelConfig, {**MODEL, "embedding": embedding})
    with pytest.raises(ConfigError, match="reads images of 3 x 8 x 16"):
        task().targets(model)


def words(folder: Path, **keys: Any) -> list[str]:
    model = {
        "model": "vit/tiny",
        "model.hidden": 16,
        "model.encoder.layers": 1,
        "model.encoder.heads": 2,
        "model.encoder.ffn": 32,
        "model.embedding.parts.patch.image_size": 8,
        "model.embedding.parts.patch.patch_size": 4,
    }
    settings = {
        "task": "image_classify",
        "task.transform.size": 8,
        "init": "none",
        **model,
        "run_dir": folder / "run",
        "trainer.steps": 30,
        "trainer.batch_size": 10,
        "optim.lr": 0.01,
        "parallel.device": "cpu",
        **keys,
    }
    return [f"{key}={value}" for key, value in settings.items()]


def test_a_model_learns_colours_and_predicts_them(tmp_path: Path) -> None:
    train, dev = (class_folders(tmp_path / n, count) for n, count in (("train", 20), ("dev", 5)))
    data = {"data.train": train, "data.dev": dev, "data.test": dev}
    assert main("finetune", words(tmp_path, **data)) == 0
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("test/accuracy") == 1 for line in records)
    chosen = [f"checkpoint={tmp_path / 'run'}", f"data.test={dev}"]
    assert main("predict", [*chosen, f"output={tmp_path / 'answers.tsv'}"]) == 0
    header, *lines = (tmp_path / "answers.tsv").read_text().splitlines()
    assert header.split("\t")[:3] == ["path", "label", "probability"]
    assert [line.split("\t")[:2] for line in lines] == [
        [f"{name}/{number:03}.png", name] for name in ("blue", "red") for number in range(5)
    ]


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path) -> None:
    train = class_folders(tmp_path / "train", count=8)
    keys = {"data.train": train, "data.dev": train, "task.mix.mixup": 0.4, "trainer.steps": 6}
    losses = []
    for name, stops in (("whole", [None]), ("parts", [2, None])):
        for stop in stops:
            more = {} if stop is None else {"trainer.stop_after": stop}
            run = {"run_dir": tmp_path / name, "trainer.log_every": 1}
            assert main("finetune", words(tmp_path, **keys, **run, **more)) == 0
        found = [
            json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        losses.append([record["train/loss"] for record in found if "train/loss" in record])
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
    assert torch.tensor(losses[0]).isfinite().all()


def test_pixels_are_as_in_the_training_of_the_model() -> None:
    """Mean and resizing of earlier training, in the size that is read now, and what is given."""
    keys = {"name": "image", "transform": {"size": 4, "resize": 6, "mean": [0.1, 0.2, 0.3]}}
    objective = decode(ImageObjective.Config, keys)
    model = decode(ModelConfig, MODEL).model_copy(update={"objective": objective})
    learned = task(transform={"flip": 0.0})
    learned.learn_labels(["a", "b"], "data.train")
    learned.targets(model)
    transform = learned.state()["transform"]
    assert (transform["size"], transform["resize"], transform["flip"]) == (8, 12, 0.0)
    assert transform["mean"] == [0.1, 0.2, 0.3]
    # What comes after it goes on with the same pixels.
    later = task(transform=None)
    later.inherit(learned.state())
    later.learn_labels(["a", "b"], "data.train")
    later.targets(decode(ModelConfig, MODEL))
    assert later.state()["transform"]["mean"] == [0.1, 0.2, 0.3]


def test_keys_given_to_predict_count_more_than_what_was_learned(tmp_path: Path) -> None:
    """Usual values, too, though the config of a run is saved with all keys."""
    train = class_folders(tmp_path / "train", count=4)
    keys = {
        "data.train": train,
        "trainer.steps": 1,
        "model.objective.transform.mean": [0.1, 0.2, 0.3],
    }
    assert (
        main(
            "finetune",
            words(tmp_path, **keys, **{"model.objective.transform.interpolation": "nearest"}),
        )
        == 0
    )
    checkpoint = open_checkpoint(tmp_path / "run")

    def transform(**given: Any) -> ImageTransformConfig:
        changes = {"name": "image_classify", "transform": given} if given else None
        chosen = None if changes is None else decode(ImageClassifyTask.Config, changes)
        found = load_predictor(checkpoint, MACHINE, chosen)
        return found.task.examples([], found.inputs, False)._images._config.transform

    learned = transform()
    assert (learned.mean, learned.interpolation, learned.size) == ((0.1, 0.2, 0.3), "nearest", 8)
    other = transform(mean=[0.5, 0.5, 0.5])
    assert (other.mean, other.interpolation, other.size) == ((0.5, 0.5, 0.5), "nearest", 8)
