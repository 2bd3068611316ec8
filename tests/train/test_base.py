"""Runs whose checkpoints hold an adapter only: resumed, predicted with, started from, moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.base import BASE, base_of, model_tensors, open_base, plain_tensors
from tencentpretrain.train.finetune import FinetuneConfig, prepare, run_finetune
from tencentpretrain.train.predict import PredictConfig, run_predict
from tencentpretrain.train.saved_checkpoint import Checkpoint, find_latest, open_checkpoint
from tests.helpers.pretraining import metrics, pretrain, write_shards
from tests.tasks import toy

LORA = {"moslora": {"rank": 4}}
TRAINER = {"steps": 8, "eval_every": 4, "batch_size": 16, "precision": "fp32", "log_every": 2}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    toy.save_run(tmp_path / "base", toy.MODEL)
    return tmp_path / "base"


def config(folder: Path, init: Path, run: str = "run", **keys: Any) -> FinetuneConfig:
    data = toy.finetune_data(folder, wrappers=LORA, trainer=TRAINER)
    data |= {"init": str(init), "run_dir": str(folder / run), "model": {}}
    del data["tokenizer"]
    return decode(FinetuneConfig, toy.merged(data, keys))


def latest(folder: Path) -> Checkpoint:
    found = find_latest(folder / "checkpoints")
    assert found is not None
    return found


def predict(folder: Path, run: str, output: str = "out.tsv") -> str:
    data = {"checkpoint": str(folder / run), "output": str(folder / output), "device": "cpu"}
    data |= {"data": {"test": str(folder / "test.tsv")}, "precision": "fp32", "overwrite": True}
    assert run_predict(decode(PredictConfig, data)) == 0
    return (folder / output).read_text()


def differing(left: Checkpoint, right: Checkpoint) -> list[str]:
    first, second = (c.tensors("model") | c.tensors("optimizer") for c in (left, right))
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def test_a_run_holds_its_adapter_and_knows_its_base(base: Path, tmp_path: Path) -> None:
    assert run_finetune(config(tmp_path, base)) == 0
    saved = latest(tmp_path / "run")
    weights = saved.tensors("model")
    assert all(".lora_" in name or name.startswith("target.classify.") for name in weights)
    assert {name.rpartition("/")[0] for name in saved.tensors("optimizer")} == set(weights)
    reference = base_of(saved)
    assert reference is not None
    original = open_checkpoint(base)
    assert Path(reference.path) == original.path
    assert open_base(saved, reference).path == original.path
    given = original.tensors("model")
    whole = model_tensors(saved)
    for name, tensor in given.items():
        if not name.startswith("target."):
            assert torch.equal(whole[name], tensor)
    folded = plain_tensors(saved)
    assert set(folded) == set(whole) - {n for n in whole if ".lora_" in n}
    query = "encoder.layers.0.attention.query"
    parts = (whole[f"{query}.lora_{part}"] for part in ("b", "mixer", "a"))
    product = torch.linalg.multi_dot(list(parts))
    torch.testing.assert_close(folded[f"{query}.weight"], whole[f"{query}.weight"] + 8 * product)
    results = [r for r in metrics(tmp_path / "run") if "test/accuracy" in r]
    assert len(results) == 1
    # Rerun at its end, the evaluation of the best one needs the base again.
    assert run_finetune(config(tmp_path, base)) == 0


@pytest.mark.parametrize("cut", [1, 7])
def test_an_interrupted_adapter_goes_on_exactly(base: Path, tmp_path: Path, cut: int) -> None:
    run_finetune(config(tmp_path, base, "whole"))
    run_finetune(config(tmp_path, base, "parts", trainer={"stop_after": cut}))
    assert latest(tmp_path / "parts").step == cut
    run_finetune(config(tmp_path, base, "parts"))
    assert differing(latest(tmp_path / "whole"), latest(tmp_path / "parts")) == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert base_of(latest(tmp_path / "whole")) == base_of(latest(tmp_path / "parts"))


def test_d45_predictions_equal_the_evaluation(base: Path, tmp_path: Path) -> None:
    run_finetune(config(tmp_path, base, trainer={"steps": 60}))
    answers = [line.split("\t")[0] for line in predict(tmp_path, "run").splitlines()[1:]]
    given = [line.split("\t")[0] for line in (tmp_path / "test.tsv").read_text().splitlines()[1:]]
    accuracy = sum(a == g for a, g in zip(answers, given, strict=True)) / len(given)
    found = [r["test/accuracy"] for r in metrics(tmp_path / "run") if "test/accuracy" in r]
    assert accuracy == pytest.approx(found[0])
    assert set(answers) == {"yes", "no"}
    assert accuracy > 0.6


def test_a_run_may_start_from_an_adapter(base: Path, tmp_path: Path) -> None:
    run_finetune(config(tmp_path, base, "first"))
    folded = plain_tensors(open_checkpoint(tmp_path / "first"))
    plain = config(tmp_path, tmp_path / "first", "plain", wrappers={"moslora": None})
    plain = plain.model_copy(update={"wrappers": {}})
    model = prepare(plain).job.model
    for name, tensor in folded.items():
        assert torch.equal(model.get_parameter(name), tensor)
    # An adapter upon an adapter: the second one refers to the first one, and that one to the base.
    run_finetune(config(tmp_path, tmp_path / "first", "second", seed=1))
    reference = base_of(latest(tmp_path / "second"))
    assert reference is not None
    assert reference.path == str(open_checkpoint(tmp_path / "first").path)
    whole = model_tensors(latest(tmp_path / "second"))
    query = "encoder.layers.0.attention.query.weight"
    assert torch.equal(whole[query], folded[query])
    assert predict(tmp_path, "second")


def test_folders_may_move_together(base: Path, tmp_path: Path) -> None:
    run_finetune(config(tmp_path, base))
    before = predict(tmp_path, "run")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("base", "run"):
        shutil.move(tmp_path / name, moved / name)
    assert predict(tmp_path, "elsewhere/run") == before


def test_a_base_that_is_gone_or_changed_is_named(base: Path, tmp_path: Path) -> None:
    part = {"trainer": {"stop_after": 3}}
    run_finetune(config(tmp_path, base, **part))
    path = open_checkpoint(base).path
    shutil.move(base, tmp_path / "away")
    message = rf"adapter only, and its base `{path}` is not there; put it back, or give its new"
    with pytest.raises(CheckpointError, match=message):
        predict(tmp_path, "run")
    with pytest.raises(CheckpointError, match=message) as caught:
        run_finetune(config(tmp_path, base))
    assert caught.value.exit_code == 2
    saved = latest(tmp_path / "run")
    assert model_tensors(saved, moved=tmp_path / "away").keys() > saved.tensors("model").keys()
    toy.save_run(tmp_path / "base", toy.merged(toy.MODEL, {"init": {"std": 0.3}}))
    with pytest.raises(CheckpointError, match=f"`{path}` is not the base that it was trained on"):
        predict(tmp_path, "run")
    with pytest.raises(CheckpointError, match="is not the base that it was trained on"):
        model_tensors(saved, moved=tmp_path / "base")


def test_a_damaged_base_is_found(base: Path, tmp_path: Path) -> None:
    run_finetune(config(tmp_path, base))
    file = open_checkpoint(base).path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was altered"):
        predict(tmp_path, "run")


def test_what_the_base_lacks_is_saved_though_it_does_not_train(base: Path, tmp_path: Path) -> None:
    keys = {"wrappers": {"moslora": {"trained": ["target.classify.output.*"]}}}
    run_finetune(config(tmp_path, base, **keys))
    weights = latest(tmp_path / "run").tensors("model")
    assert "target.classify.dense.weight" in weights
    stated = {name.rpartition("/")[0] for name in latest(tmp_path / "run").tensors("optimizer")}
    assert "target.classify.dense.weight" not in stated
    predict(tmp_path, "run")


def test_without_a_base_all_is_saved(tmp_path: Path) -> None:
    data = toy.finetune_data(tmp_path, wrappers=LORA, trainer=TRAINER)
    run_finetune(decode(FinetuneConfig, data))
    saved = latest(tmp_path / "run")
    assert base_of(saved) is None
    assert "embedding.word.weight" in saved.tensors("model")
    predict(tmp_path, "run")


def test_a_run_without_wrappers_refers_to_nothing(base: Path, tmp_path: Path) -> None:
    run_finetune(config(tmp_path, base).model_copy(update={"wrappers": {}}))
    assert BASE not in latest(tmp_path / "run").manifest.files


def test_a_wrapper_that_does_not_fit_leaves_no_directory(base: Path, tmp_path: Path) -> None:
    keys = {"wrappers": {"moslora": {"modules": ["decoder.*"]}}}
    with pytest.raises(ConfigError, match="matches no linear layer"):
        run_finetune(config(tmp_path, base, **keys))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_an_adapter(base: Path, tmp_path: Path) -> None:
    assert run_finetune(config(tmp_path, base, dry_run=True)) == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["wrappers=lora"], ["wrappers.lora.rank=8"]])
def test_pre_training_goes_on_with_an_adapter(tmp_path: Path, words: list[str]) -> None:
    shards = write_shards(tmp_path / "data")
    assert pretrain(shards, tmp_path / "base") == 0
    keys = dict(word.split("=") for word in words)
    for stop in (3, 8) if words == ["wrappers=lora"] else (8,):
        code = pretrain(
            *(shards, tmp_path / "run"),
            **{"init": tmp_path / "base", "trainer.stop_after": stop, **keys},
        )
        assert code == 0
    if words == ["wrappers=lora"]:
        assert pretrain(shards, tmp_path / "whole", init=tmp_path / "base", **keys) == 0
        assert differing(latest(tmp_path / "run"), latest(tmp_path / "whole")) == []
    rank = 16 if words == ["wrappers=lora"] else 8
    weights = latest(tmp_path / "run").tensors("model")
    assert weights["encoder.layers.0.attention.query.lora_a"].shape == (rank, 16)
    assert json.loads((latest(tmp_path / "run").path / BASE).read_text())["names"]
    # To go on with other adapters would be another run.
    other = {"init": tmp_path / "base", "wrappers.lora.rank": 2}
    assert pretrain(shards, tmp_path / "run", **other) == 2
