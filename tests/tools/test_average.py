from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.config import decode
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.tools.average import mean_tensors
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tests.helpers.pretraining import pretrain, write_shards
from tests.helpers.saved_models import call, reopen, save_model, word_tokenizer
from tests.tasks import toy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with four checkpoints."""
    folder = tmp_path_factory.mktemp("toy")
    tokenizer = toy.tokenizer(folder)
    for step in (10, 20, 30, 40):
        model = build_model(decode(ModelConfig, toy.MODEL), tokenizer.vocab_size, seed=step)
        save_model(folder / "run", model, toy.MODEL, tokenizer, step=step)
    return folder / "run"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return open_checkpoint(path).tensors("model")


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step_{number:08d}"


def assert_mean(found: dict[str, torch.Tensor], parts: list[dict[str, torch.Tensor]]) -> None:
    assert found.keys() == parts[0].keys()
    for name, tensor in found.items():
        mean = torch.stack([part[name].double() for part in parts]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-5, atol=1e-7)


def test_the_mean_is_that_of_the_weights(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mean"
    assert call(capsys, "average", run_dir=run, last=3, output=output)[0] == 0
    assert_mean(weights(output), [weights(step(run, number)) for number in (20, 30, 40)])
    assert reopen(output)[2]["model"] == reopen(run)[2]["model"]
    assert open_checkpoint(output).step == 40
    chosen = f"checkpoints=[{step(run, 10)},{run}]"
    assert call(capsys, "average", chosen, output=output, overwrite="true")[0] == 0
    assert_mean(weights(output), [weights(step(run, number)) for number in (10, 40)])


def test_a_mean_can_be_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_shards(tmp_path / "data")
    assert pretrain(shards, tmp_path / "run") == 0
    assert call(capsys, "average", run_dir=tmp_path / "run", output=tmp_path / "mean")[0] == 0
    keys = {"init": tmp_path / "mean", "trainer.steps": 1}
    assert pretrain(shards, tmp_path / "next", **keys) == 0


def test_types_are_kept_and_counters_are_the_last_ones() -> None:
    parts = [
        {"w": torch.full((3,), value, dtype=torch.bfloat16), "n": torch.tensor(number)}
        for number, value in enumerate((1.0, 2.0, 6.0))
    ]
    mean = mean_tensors(iter(parts))
    assert (mean["w"].dtype, mean["w"].tolist(), int(mean["n"])) == (torch.bfloat16, [3.0] * 3, 2)
    assert parts[0]["w"].tolist() == [1.0] * 3  # what was read is left as it was


def other_run(folder: Path, kind: str) -> Path:
    """A run that differs in one thing from those of toy.MODEL."""
    data: dict[str, Any] = toy.MODEL
    words = list(toy.VOCABULARY[5:])
    if kind == "config of the model":
        data = toy.merged(toy.MODEL, {"encoder": {"dropout": 0.2}})
    if kind == "tokenizer":
        words = words[::-1]
    tokenizer = word_tokenizer(folder, words)
    model = build_model(decode(ModelConfig, data), tokenizer.vocab_size)
    if kind == "set of tensors":
        model.register_parameter("more", torch.nn.Parameter(torch.ones(2)))
    sections = {"task": {"name": "classify"}} if kind == "config of the task" else {}
    save_model(folder / "run", model, data, tokenizer, **sections)
    return folder / "run"


KINDS = ("config of the model", "config of the task", "tokenizer", "set of tensors")


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    ours, theirs = other_run(tmp_path / "a", ""), other_run(tmp_path / "b", kind)
    keys = {"output": tmp_path / "mean"}
    code, _, errors = call(capsys, "average", f"checkpoints=[{ours},{theirs}]", **keys)
    assert (code, len(errors)) == (2, 1)
    assert f"has another {kind} than" in errors[0]
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "either checkpoints or run_dir must be given"),
        ({"checkpoints": "[a,b]", "run_dir": "a"}, "either checkpoints or run_dir"),
        ({"checkpoints": "[a,b]", "last": 2}, "last needs run_dir"),
        ({"checkpoints": "[a,b]"}, "checkpoint `a` does not exist"),
        ({"checkpoints": "[RUN]"}, "at least two different checkpoints are needed"),
        ({"checkpoints": "[RUN,RUN]"}, "at least two different checkpoints are needed"),
        ({"run_dir": "RUN", "last": 5}, "has 4 checkpoints, fewer than last=5"),
        ({"run_dir": "."}, "`.` is not a run directory"),
        ({"run_dir": "RUN", "output": "old"}, "`old` exists"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    given = {key: str(value).replace("RUN", str(run)) for key, value in keys.items()}
    code, out, errors = call(capsys, "average", **{"output": "mean", **given})
    assert (code, out, len(errors)) == (2, "", 1)
    assert message in errors[0]
