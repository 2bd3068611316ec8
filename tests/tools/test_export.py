import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.config import decode
from tencentpretrain.train.finetune import FinetuneConfig, run_finetune
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tests.helpers.pretraining import pretrain, write_shards
from tests.helpers.saved_models import call, reopen
from tests.tasks import toy


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a fine-tuned run and its files."""
    folder = tmp_path_factory.mktemp("reviews")
    run_finetune(toy.finetune_config(folder, trainer={"steps": 12}))
    return folder


def test_an_export_is_the_model_and_nothing_of_its_training(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "model"
    assert call(capsys, "export", checkpoint=reviews / "run", output=output)[0] == 0
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith("tokenizer/")} == {
        *("model.safetensors", "config.yaml", "task.json", "manifest.json")
    }
    source = open_checkpoint(reviews / "run")
    exported = open_checkpoint(output)
    weights, copies = source.tensors("model"), exported.tensors("model")
    assert weights.keys() == copies.keys()
    assert all(torch.equal(weights[name], copies[name]) for name in weights)
    assert exported.step == source.step
    text = (output / "config.yaml").read_text()
    assert str(reviews) not in text.replace("vocab.txt", "")  # nothing of where it was trained
    assert sorted(reopen(output)[2]) == ["model", "task", "wrappers"]


def test_an_exported_model_predicts_as_its_run(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "export", checkpoint=reviews / "run", output=tmp_path / "model")
    answers = []
    for number, checkpoint in enumerate((reviews / "run", tmp_path / "model")):
        keys: dict[str, Any] = {"checkpoint": checkpoint, "data.test": reviews / "test.tsv"}
        output = tmp_path / f"{number}.tsv"
        assert call(capsys, "predict", **keys, output=output)[0] == 0
        answers.append(output.read_text())
    assert answers[0] == answers[1]


def test_pretraining_and_finetuning_start_from_an_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_shards(tmp_path / "data")
    assert pretrain(shards, tmp_path / "first", **{"trainer.steps": 2}) == 0
    assert call(capsys, "export", checkpoint=tmp_path / "first", output=tmp_path / "model")[0] == 0
    keys = {"init": tmp_path / "model", "trainer.steps": 1, "optim.lr": 1e-9}
    assert pretrain(shards, tmp_path / "second", **keys) == 0
    first, second = (
        open_checkpoint(tmp_path / name).tensors("model") for name in ("model", "second")
    )
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-6)
    data = toy.finetune_data(tmp_path, init=str(tmp_path / "model"), trainer={"steps": 1})
    del data["model"], data["tokenizer"]
    assert run_finetune(decode(FinetuneConfig, data)) == 0


def test_an_adapter_is_exported_with_the_weights_that_it_adapts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_shards(tmp_path / "data")
    assert pretrain(shards, tmp_path / "base", **{"trainer.steps": 1}) == 0
    keys = {"wrappers.lora.rank": 2, "trainer.steps": 2, "optim.lr": 0.1}
    assert pretrain(shards, tmp_path / "run", init=tmp_path / "base", **keys) == 0
    vocab = tmp_path / "data" / "vocab30.txt"
    same = {"tokenizer": "wordpiece", "tokenizer.vocab": vocab}
    assert call(capsys, "export", checkpoint=tmp_path / "run", output=tmp_path / "whole")[0] == 0
    given: dict[str, Any] = {"checkpoint": tmp_path / "run", "output": tmp_path / "folded", **same}
    assert call(capsys, "adapt_vocab", **given)[0] == 0
    toy.write(tmp_path / "in.txt", ["w1 [MASK] w3", "[MASK] w5"])
    answers = []
    for name in ("run", "whole", "folded", "base"):
        output = tmp_path / f"{name}.jsonl"
        given = {"checkpoint": tmp_path / name, "input": tmp_path / "in.txt", "output": output}
        assert call(capsys, "cloze", **given)[0] == 0
        answers.append(output.read_text())
    assert answers[0] == answers[1]
    first, folded = (json.loads(text.splitlines()[0]) for text in (answers[0], answers[2]))
    assert first["words"] == folded["words"]
    assert answers[0] != answers[3]
    assert not (tmp_path / "whole" / "base.json").exists()


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_may_be_stored_in_half(
    reviews: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    dtype: torch.dtype,
) -> None:
    keys = {"checkpoint": reviews / "run", "output": tmp_path / "model", "precision": name}
    assert call(capsys, "export", **keys)[0] == 0
    exported = open_checkpoint(tmp_path / "model").tensors("model")
    for key, tensor in open_checkpoint(reviews / "run").tensors("model").items():
        assert exported[key].dtype == dtype
        torch.testing.assert_close(exported[key].float(), tensor, rtol=1e-2, atol=1e-3)


def test_what_is_there_is_not_lost(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model"
    keys = {"checkpoint": reviews / "run", "output": output}
    assert call(capsys, "export", **keys)[0] == 0
    code, _, errors = call(capsys, "export", **keys)
    assert (code, len(errors)) == (2, 1)
    assert "replace the model in it with overwrite=true" in errors[0]
    (output / "old").touch()
    assert call(capsys, "export", **keys, overwrite="true")[0] == 0
    assert not (output / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    toy.write(tmp_path / "notes.txt", ["precious"])
    for place in (tmp_path, tmp_path / "notes.txt"):
        code, _, errors = call(capsys, "export", **{**keys, "output": place}, overwrite="true")
        assert (code, len(errors)) == (2, 1)
        assert "is no model, so it is not replaced; choose another name" in errors[0]
    code, _, errors = call(capsys, "export", checkpoint=output, output=output, overwrite="true")
    assert (code, len(errors)) == (2, 1)
    assert "must not be what is read" in errors[0]
    code, _, errors = call(capsys, "export", **{**keys, "output": tmp_path / "step_00000005"})
    assert code == 2
    assert "must not be called like a checkpoint" in errors[0]


def test_nothing_is_left_of_an_export_that_fails(
    reviews: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tencentpretrain.train.checkpoint_files.write_tensors", fail)
    code, _, errors = call(capsys, "export", checkpoint=reviews / "run", output=tmp_path / "model")
    assert (code, len(errors)) == (1, 1)
    assert "model` cannot be written: No space left on device" in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = toy.save_run(tmp_path / "run", toy.MODEL).path
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    code, _, errors = call(capsys, "export", checkpoint=path, output=tmp_path / "model")
    assert (code, len(errors)) == (2, 1)
    assert "model.safetensors was altered" in errors[0]
