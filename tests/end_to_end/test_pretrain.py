import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.train.checkpoint import open_checkpoint
from tencentpretrain.train.pretrain import PretrainConfig
from tencentpretrain.train.same_run import require_same_run
from tencentpretrain.yaml_text import load_yaml
from tests.helpers.pretraining import metrics, pretrain, words_of, write_shards

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def newest(run_dir: Path) -> Path:
    return sorted((run_dir / "checkpoints").iterdir())[-1]


def assert_same_checkpoint(first: Path, second: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    states = [json.loads((folder / "state.json").read_text()) for folder in (first, second)]
    assert states[0] == states[1]


def test_a_run_directory_holds_what_it_promises(shards: Path, tmp_path: Path) -> None:
    assert pretrain(shards, tmp_path / "run") == 0
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "metrics.jsonl", "tensorboard"}
    assert newest(run).name == "step_00000008"
    assert {p.name for p in newest(run).iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "config.yaml",
        "tokenizer",
        "manifest.json",
    }
    records = metrics(run)
    trained = [r for r in records if "train/loss" in r]
    assert [r["step"] for r in trained] == list(range(1, 9))
    assert trained[0].keys() >= {"optim/lr", "optim/grad_norm", "train/mlm/accuracy"}
    assert [r["step"] for r in records if "eval/loss" in r] == [4, 8]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["encoder"]["heads"] == 2


def test_d2_the_last_step_is_saved_whatever_the_rhythm(shards: Path, tmp_path: Path) -> None:
    keys = {"trainer.steps": 5, "trainer.eval_every": 9, "checkpoint.every": 1000}
    assert pretrain(shards, tmp_path / "run", **keys) == 0
    assert newest(tmp_path / "run").name == "step_00000005"


def test_a_causal_model_learns_what_follows(shards: Path, tmp_path: Path) -> None:
    keys = {"model": "gpt2/tiny", "optim.lr": 0.02, "trainer.log_every": 50}
    steps = {"trainer.steps": 120, "trainer.eval_every": 60, "checkpoint.every": 1000}
    assert pretrain(shards, tmp_path / "run", **keys, **steps) == 0
    losses = [r["eval/loss"] for r in metrics(tmp_path / "run") if "eval/loss" in r]
    # Any of 30 words is equally likely at first, then only the starts of sentences are.
    assert losses[-1] < 1.7


@pytest.mark.parametrize("workers", [0, 2])
def test_d4_an_interrupted_run_continues_bit_for_bit(
    shards: Path, tmp_path: Path, workers: int
) -> None:
    keys = {"trainer.micro_batch_size": 3, "trainer.log_every": 3, "data.workers": workers}
    assert pretrain(shards, tmp_path / "whole", **keys) == 0
    for _ in range(3):
        assert pretrain(shards, tmp_path / "parts", **keys, **{"trainer.stop_after": 3}) == 0
    assert_same_checkpoint(newest(tmp_path / "parts"), newest(tmp_path / "whole"))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_finished_run_stays_as_it_is(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(shards, tmp_path / "run")
    before = metrics(tmp_path / "run")
    assert pretrain(shards, tmp_path / "run") == 0
    assert metrics(tmp_path / "run") == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_continues(
    shards: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    keys = {"trainer.steps": 100000, "checkpoint.every": 100000, "trainer.eval_every": 100000}
    command = [sys.executable, str(ROOT / "pretrain.py"), *words_of(shards, run, **keys)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "the same command continues" in said
    step = open_checkpoint(run, choose="latest").step
    assert pretrain(shards, run, **{**keys, "trainer.stop_after": 1}) == 0
    assert open_checkpoint(run, choose="latest").step == step + 1


def test_a_killed_run_continues_from_its_newest_checkpoint(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = {"checkpoint.every": 2, "trainer.steps": 100000, "trainer.eval_every": 100000}
    command = [sys.executable, str(ROOT / "pretrain.py"), *words_of(shards, run, **keys)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not any(run.glob("checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait(timeout=30)
    reached = open_checkpoint(run, choose="latest").step
    assert pretrain(shards, run, **{**keys, "trainer.stop_after": 1}) == 0
    steps = [r["step"] for r in metrics(run)]
    assert steps == list(range(1, reached + 2))


def test_a_damaged_checkpoint_is_named_and_an_older_one_used(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    pretrain(shards, run)
    damaged = newest(run) / "model.safetensors"
    with damaged.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\xff")
    assert pretrain(shards, run, **{"trainer.steps": 10}) == 0
    assert "step_00000008" in caplog.text
    assert "model.safetensors" in caplog.text
    assert [r["step"] for r in metrics(run) if "train/loss" in r] == list(range(1, 11))


def test_a_dry_run_leaves_nothing_and_tells_the_cost(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert pretrain(shards, tmp_path / "run", dry_run=True) == 0
    assert list(tmp_path.iterdir()) == []
    for word in ("dry run passed", "tokens/s", "peak memory", "checkpoints", "epochs"):
        assert word in caplog.text


def test_init_takes_weights_only(shards: Path, tmp_path: Path) -> None:
    pretrain(shards, tmp_path / "first")
    pretrain(shards, tmp_path / "second", init=tmp_path / "first", **{"optim.lr": 1e-12, "seed": 5})
    first = load_file(open_checkpoint(tmp_path / "first").path / "model.safetensors")
    second = load_file(newest(tmp_path / "second") / "model.safetensors")
    assert metrics(tmp_path / "second")[0]["step"] == 1
    for name, tensor in first.items():
        assert (second[name] - tensor).abs().max() < 1e-6, name


def test_init_from_a_run_with_another_tokenizer_needs_the_users_word(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(shards, tmp_path / "first")
    other = write_shards(tmp_path, words=30, order=-1)
    keys = {"init": tmp_path / "first", "trainer.steps": 2}
    assert pretrain(other, tmp_path / "second", **keys) == 2
    assert "trained with another tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()
    assert pretrain(other, tmp_path / "second", **keys, allow_other_tokenizer=True) == 0


REFUSED = {
    "another model": ({"model.hidden": 32}, "model.hidden: is 32, but the run in"),
    "another optimiser": ({"optim": "sgd"}, "optim.name: is 'sgd'"),
    "another split": ({"data.holdout": 0.3}, "data.holdout: is 0.3"),
    "another seed": ({"seed": 3}, "seed: is 3"),
    "nothing may be there": ({"resume": "never"}, "holds a run at step 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_is_not_continued_as_another_one(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    keys, message = REFUSED[case]
    pretrain(shards, tmp_path / "run")
    before = metrics(tmp_path / "run")
    assert pretrain(shards, tmp_path / "run", **{"trainer.steps": 20, **keys}) == 2
    assert message in capsys.readouterr().err
    assert metrics(tmp_path / "run") == before


def test_d91_a_run_is_not_continued_on_other_data(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(shards, tmp_path / "run")
    other = write_shards(tmp_path, seed=1)
    assert pretrain(other, tmp_path / "run", **{"trainer.steps": 20}) == 2
    assert "trained on other data" in capsys.readouterr().err


NOT_STARTED = {
    "no data": ({"data.path": "/nowhere"}, "/nowhere does not exist"),
    "device": ({"parallel.device": "bogus"}, "device must be a name such as cpu or cuda:1"),
    "no such GPU": ({"parallel.device": "cuda:99"}, "torch finds no such GPU"),
    "misspelt": ({"trainer.stepz": 3}, "trainer.stepz: is not a known key; did you mean `steps`?"),
    "heads": ({"model.encoder.heads": 3}, "encoder.heads must divide the width hidden=16"),
    "rows": ({"model.objective.length": 4096}, "objective.length must be at most"),
    "warm-up": ({"schedule.warmup_steps": 9}, "warmup_steps must be at most trainer.steps=8"),
    "warm-up of epochs": (
        {"trainer.steps": "null", "trainer.epochs": 1, "schedule.warmup_steps": 999},
        "schedule.warmup_steps: must be at most the",
    ),
    "must": ({"resume": "must"}, "there is nothing to resume"),
    "init": ({"init": "/nowhere"}, "/nowhere"),
    "vocabulary": ({"model.vocabulary": 7}, "must be at least the tokenizer's size 35"),
    "target": ({"model.target": "{sop: {}}"}, "gets no labels from objective.name=bert"),
}


@pytest.mark.parametrize("case", NOT_STARTED)
def test_d94_what_cannot_work_is_refused_before_anything_is_created(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    keys, message = NOT_STARTED[case]
    assert pretrain(shards, tmp_path / "run", **keys) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_all_mistakes_are_told_at_once(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {
        "model.encoder.headz": 2,
        "checkpoint.every": 0,
        "data.holdout": "half",
        "schedule.warmup_steps": 9,
        "model.encoder.dropout": 1.5,
    }
    assert pretrain(shards, tmp_path / "run", **keys) == 2
    said = capsys.readouterr().err
    for key in keys:
        assert key in said


def test_a_run_of_before_a_key_was_added_is_still_the_same_run(
    shards: Path, tmp_path: Path
) -> None:
    pretrain(shards, tmp_path / "run")
    saved = load_yaml(tmp_path / "run" / "config.yaml")
    config = decode(PretrainConfig, saved)
    for key in ("alibi", "window", "norm_eps"):
        del saved["model"]["encoder"][key]
    require_same_run(saved, config)
    saved["model"]["encoder"]["norm_eps"] = 1e-3
    with pytest.raises(ConfigError, match=r"^model\.encoder\.norm_eps: is"):
        require_same_run(saved, config)
