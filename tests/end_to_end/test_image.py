"""Images from files to a trained model: preprocess, train, stop, continue, evaluate."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tencentpretrain.cli import main
from tests.helpers.pictures import class_folders, encoded, media_shards, picture
from tests.helpers.pretraining import metrics, pretrain

MODEL: dict[str, Any] = {
    "hidden": 16,
    "embedding": {
        "parts": {"patch": {"image_size": 8, "patch_size": 4}, "patch_position": {}},
        "norm": "none",
        "dropout": 0.0,
    },
    "encoder": {
        "name": "transformer",
        "layers": 1,
        "heads": 2,
        "ffn": 32,
        "norm_order": "pre",
        "dropout": 0.1,
    },
    "target": {"classify": {"classes": 2}},
    "objective": {
        "name": "image",
        "transform": {"size": 8, "crop": "random", "padding": 1},
        "mix": {"mixup": 0.2},
    },
}


def model_file(folder: Path, **keys: Any) -> Path:
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump({**MODEL, **keys}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty tiny PNG files in two folders, and their shards."""
    words = ["corpus.format=image", f"corpus.path={class_folders(tmp_path / 'data')}", "workers=1"]
    assert main("preprocess", [*words, f"output={tmp_path / 'shards'}"]) == 0
    return tmp_path


def train(folder: Path, name: str, **keys: Any) -> list[dict[str, Any]]:
    settings = {"model": model_file(folder), "data.holdout": 0.2, "optim.lr": 0.01, **keys}
    # What a tiny text model of the helper has and an image model has not.
    settings |= {"model.objective.length": None}
    chosen = {"model.hidden": 16, "model.encoder.layers": 1, **settings}
    assert main("pretrain", words_of(folder, name, chosen)) == 0
    return metrics(folder / name)


def words_of(folder: Path, name: str, settings: dict[str, Any]) -> list[str]:
    common = {
        "data.path": folder / "shards",
        "run_dir": folder / name,
        "trainer.steps": 8,
        "trainer.batch_size": 4,
        "trainer.log_every": 1,
        "trainer.eval_every": 4,
        "checkpoint.every": 3,
        "parallel.device": "cpu",
    }
    chosen = {**common, **settings}
    return [f"{key}={value}" for key, value in chosen.items() if value is not None]


def test_d56_a_model_learns_colours_on_the_cpu(folder: Path) -> None:
    records = train(folder, "run", **{"trainer.steps": 40, "trainer.eval_every": 40})
    assert records[-1]["eval/classify/accuracy"] == 1
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    assert losses[-1] < losses[0] / 2
    assert not (folder / "run" / "tokenizer").exists()
    lines = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "perf/data_wait" in line)
    assert 0 <= logged["perf/data_wait"] <= 1
    assert logged["perf/examples_per_s"] > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_equals_one_that_never_stopped(folder: Path, workers: int) -> None:
    whole = train(folder, "whole")
    train(folder, "parts", **{"trainer.stop_after": 3})
    assert train(folder, "parts", **{"data.workers": workers}) == whole


def test_micro_batches_change_nothing(folder: Path) -> None:
    plain = {"model.encoder.dropout": 0, "trainer.precision": "fp32"}
    whole = train(folder, "whole", **plain)
    parts = train(folder, "parts", **plain, **{"trainer.micro_batch_size": 1})
    for one, two in zip(whole, parts, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)


def test_sources_with_different_classes_are_mixed(folder: Path) -> None:
    more = class_folders(folder / "more", classes=("green", "blue"))
    media_shards(folder / "more_shards", more)
    mix = {"data.mix.one.path": folder / "shards", "data.mix.two.path": folder / "more_shards"}
    keys = {**mix, "data.path": None, "model.target.classify.classes": 3}
    records = train(folder, "run", **keys)
    evaluated = next(record for record in records if "eval/loss" in record)
    assert {"eval/one/loss", "eval/two/loss"} <= evaluated.keys()


def test_other_files_are_another_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(folder, "run", **{"trainer.stop_after": 3})
    (folder / "data" / "red" / "999.png").write_bytes(encoded(picture(1)))
    media_shards(folder / "shards", folder / "data", overwrite=True)
    settings = {"model": model_file(folder), "data.holdout": 0.2, "optim.lr": 0.01}
    assert main("pretrain", words_of(folder, "run", settings)) == 2
    assert "data" in capsys.readouterr().err


def test_a_wrong_number_of_classes_is_told_before_step_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model": model_file(folder), "model.target.classify.classes": 1}
    assert main("pretrain", words_of(folder, "run", settings)) == 2
    assert "must be 2, the labels of the data (blue, red)" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_texts_are_no_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(folder / "shards", folder / "run") == 2
    assert "preprocess" in capsys.readouterr().err
