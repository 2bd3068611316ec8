import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.cli import main
from tencentpretrain.config import decode
from tencentpretrain.train.base import model_tensors
from tencentpretrain.train.finetune import FinetuneConfig, run_finetune
from tencentpretrain.train.predict import PredictConfig, run_predict
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tests.tasks import toy


@pytest.fixture(scope="module", params=["lora", "moslora", "dora"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a base and a run that adapts it, embedding parts included where they may be."""
    folder = tmp_path_factory.mktemp(request.param)
    toy.save_run(folder / "base", toy.MODEL)
    modules = ["encoder.*", *(["embedding.*"] if request.param == "lora" else [])]
    wrappers = {request.param: {"rank": 4, "modules": modules}}
    data = toy.finetune_data(folder, wrappers=wrappers, trainer={"steps": 20})
    data |= {"init": str(folder / "base"), "run_dir": str(folder / "run"), "model": {}}
    del data["tokenizer"]
    assert run_finetune(decode(FinetuneConfig, data)) == 0
    return folder


def merge(capsys: pytest.CaptureFixture[str], **keys: Any) -> tuple[int, str]:
    """Exit code and errors of the command."""
    code = main("merge_adapter", [f"{key}={value}" for key, value in keys.items()])
    return code, capsys.readouterr().err


def answers(runs: Path, checkpoint: Path, output: Path) -> list[dict[str, str]]:
    data = {"checkpoint": str(checkpoint), "output": str(output), "device": "cpu"}
    data |= {"data": {"test": str(runs / "test.tsv")}, "precision": "fp32"}
    assert run_predict(decode(PredictConfig, data)) == 0
    with output.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_merged_model_answers_as_the_adapter(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    assert merge(capsys, checkpoint=runs / "run", output=merged)[0] == 0
    before = answers(runs, runs / "run", tmp_path / "before.tsv")
    # It needs neither the base nor the wrapper.
    shutil.move(runs / "base", runs / "away")
    after = answers(runs, merged, tmp_path / "after.tsv")
    shutil.move(runs / "away", runs / "base")
    for one, other in zip(before, after, strict=True):
        assert one["label"] == other["label"]
        assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=1e-5)
    weights = open_checkpoint(merged).tensors("model")
    whole = model_tensors(open_checkpoint(runs / "run"))
    assert set(weights) == {name for name in whole if ".lora_" not in name}
    query = "encoder.layers.0.attention.query.weight"
    assert not torch.equal(weights[query], whole[query])
    assert "wrappers" not in (merged / "config.yaml").read_text()


def test_tools_read_an_adapter_with_its_base(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(capsys, checkpoint=runs / "run", output=tmp_path / "merged")[0] == 0
    (tmp_path / "texts.txt").write_text("the film was good\n", encoding="utf-8")
    vectors = []
    for checkpoint in (runs / "run", tmp_path / "merged", runs / "base"):
        output = tmp_path / f"{checkpoint.name}.npy"
        words = [f"checkpoint={checkpoint}", f"input={tmp_path / 'texts.txt'}", f"output={output}"]
        assert main("extract", [*words, "device=cpu", "precision=fp32", "pooling=mean"]) == 0
        vectors.append(np.load(output, allow_pickle=False))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


def test_a_moved_base_may_be_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.move(runs / "base", moved)
    keys = {"checkpoint": runs / "run", "output": tmp_path / "merged"}
    code, error = merge(capsys, **keys)
    assert code == 2
    assert "its base" in error
    assert merge(capsys, **keys, base=moved)[0] == 0
    assert merge(capsys, **keys, base=moved)[0] == 2
    assert merge(capsys, **keys, base=moved, overwrite="true")[0] == 0
    shutil.move(moved, runs / "base")


def test_what_has_no_adapter_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"checkpoint": runs / "base", "output": tmp_path / "merged"}
    code, error = merge(capsys, **keys)
    assert code == 2
    assert "has no adapter; give the run of an adapter such as wrappers=lora" in error
    assert not (tmp_path / "merged").exists()
