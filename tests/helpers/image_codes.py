"""Objectives over a few random captioned images, and published weights that know their codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tencentpretrain.config import decode
from tencentpretrain.data.objectives.base import OBJECTIVES
from tencentpretrain.data.objectives.codes import CodesObjective
from tencentpretrain.targets.companion import Companion, Setting
from tencentpretrain.types import Batch
from tests.helpers.images import FakeImages
from tests.helpers.pictures import encoded
from tests.helpers.shards import FakeTokenizer
from tests.helpers.vqgan import random_weights

CPU = torch.device("cpu")
SIZE, CELL = 16, 2
SIDE = SIZE // CELL
MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
TRANSFORM = {"size": SIZE, "crop": "center", "flip": 0.0, "mean": MEAN, "std": STD}
CAPTIONS = [[20, 21, 22], [30], [40, 41, 42, 43, 44]]
VOCABULARY = 50
DALLE: dict[str, Any] = {"cell_size": CELL, "length": SIDE**2 + 6}
BEIT: dict[str, Any] = {"patch_size": CELL, "least_block": 4}


def write_weights(folder: Path) -> Path:
    """A file of random published weights."""
    path = folder / "vqgan.safetensors"
    save_file(random_weights(), path)
    return path


def objective_of(name: str, path: Path | None, **keys: Any) -> CodesObjective:
    draw = np.random.default_rng(0)
    shape = len(CAPTIONS), SIZE, SIZE, 3
    images = [encoded(pixels) for pixels in draw.integers(0, 256, shape).astype(np.uint8)]
    data = {"name": name, "transform": TRANSFORM, "codes": {"path": path and str(path)}} | keys
    config = decode(OBJECTIVES.config_class(name), data)
    tokenizer = FakeTokenizer(VOCABULARY)
    made = OBJECTIVES.build(config, FakeImages(CAPTIONS, images), tokenizer, 5)
    assert isinstance(made, CodesObjective)
    return made


def setting_of(objective: CodesObjective, **keys: Any) -> Setting:
    return Setting(CPU, torch.float32, objective, 10, **keys)


def batch_of(objective: CodesObjective) -> Batch:
    return objective.collate([objective.make(0, index) for index in range(len(objective))])


def annotated(objective: CodesObjective, batch: Batch) -> Batch:
    companion = objective.companion(setting_of(objective))
    assert isinstance(companion, Companion)
    assert companion.annotate is not None
    return companion.annotate(batch)
