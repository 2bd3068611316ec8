"""Recurrent and convolutional models go through pre-training."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.pretraining import metrics, pretrain, write_shards

MODELS: dict[str, dict[str, Any]] = {
    "rnn/lstm": {},
    "rnn/gru": {"model.encoder.layers": 2, "model.encoder.directions": 1},
    "elmo/bilstm": {"model.embedding.size": 8, "model.encoder.layers": 2},
    "gated_cnn/l9": {"model.embedding.size": 8, "model.encoder.layers": 3},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", ["elmo/bilstm", "gated_cnn/l9"])
def test_d31_a_run_starts_and_continues_bit_for_bit(
    shards: Path, tmp_path: Path, name: str
) -> None:
    keys = {"model": name, "trainer.steps": 4, "trainer.micro_batch_size": 3, **MODELS[name]}
    assert pretrain(shards, tmp_path / "whole", **keys) == 0
    for _ in range(2):
        assert pretrain(shards, tmp_path / "parts", **keys, **{"trainer.stop_after": 2}) == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    weights = [
        (tmp_path / run / "checkpoints" / "step_00000004" / "model.safetensors").read_bytes()
        for run in ("whole", "parts")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_what_follows_but_not_what_it_cannot_know(
    shards: Path, tmp_path: Path, name: str
) -> None:
    keys = {"model": name, "optim.lr": 0.05, "trainer.batch_size": 8, "checkpoint.every": 1000}
    keys |= {key: 32 if key.endswith("size") else value for key, value in MODELS[name].items()}
    keys |= {"model.hidden": 64, "model.encoder.layers": 1}
    keys |= {"model.encoder.dropout": 0, "model.embedding.dropout": 0}
    steps = {"trainer.steps": 60, "trainer.eval_every": 60, "trainer.log_every": 60}
    assert pretrain(shards, tmp_path / "run", **keys, **steps) == 0
    (loss,) = [r["eval/loss"] for r in metrics(tmp_path / "run") if "eval/loss" in r]
    # Where sentences begin, any of 30 words is as likely; one that sees its label would know.
    assert 0.5 < loss < 1.5
