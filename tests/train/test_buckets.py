"""Similar lengths together: a run in two parts equals one in a single part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.train.pretrain import PretrainConfig, run_pretrain
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tests.helpers.models import model_data
from tests.helpers.pretraining import write_shards
from tests.helpers.sounds import spoken_shards

TEXTS = ["a", "be", "cow", "deer", "a", "be", "cow", "deer", "eagle"]
SMALL = {
    "hidden": 16,
    "embedding": {"parts": {"frames": {"channels": 16}}},
    "encoder": {"layers": 1, "heads": 2, "ffn": 32},
    "decoder": {"layers": 1, "heads": 2, "ffn": 32},
    "objective": {"start": "cls", "speeds": [0.9, 1.0, 1.1]},
}


def config(folder: Path, name: str, **trainer: Any) -> PretrainConfig:
    content = {
        "model": model_data("s2t/tiny", SMALL),
        "data": {"path": str(folder / "shards"), "bucket": 2, "holdout": 0.2},
        "run_dir": str(folder / name),
        "trainer": {"steps": 5, "batch_size": 3, "precision": "fp32", **trainer},
        "parallel": {"name": "none", "device": "cpu"},
    }
    return decode(PretrainConfig, content)


def test_a_run_in_two_parts_is_the_same(tmp_path: Path) -> None:
    spoken_shards(tmp_path, TEXTS)
    assert run_pretrain(config(tmp_path, "whole")) == 0
    assert run_pretrain(config(tmp_path, "parts", stop_after=3)) == 0
    assert run_pretrain(config(tmp_path, "parts")) == 0
    whole, parts = (
        open_checkpoint(tmp_path / name / "checkpoints/step_00000005").tensors("model")
        for name in ("whole", "parts")
    )
    assert set(whole) == set(parts)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_examples_of_one_length_need_no_buckets(tmp_path: Path) -> None:
    content = {
        "model": model_data("gpt2/tiny", {"objective": {"length": 16}}),
        "data": {"path": str(write_shards(tmp_path / "texts")), "bucket": 2},
        "run_dir": str(tmp_path / "run"),
        "trainer": {"steps": 2, "batch_size": 2},
    }
    with pytest.raises(ConfigError, match=r"data\.bucket.*examples of different lengths"):
        run_pretrain(decode(PretrainConfig, content))
