"""A siamese LSTM learns which texts belong together."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tencentpretrain.config import decode
from tencentpretrain.data.loader import Loader
from tencentpretrain.data.order import generator
from tencentpretrain.data.rows import Grid
from tencentpretrain.distributed.parallel import PARALLELS
from tencentpretrain.model import build_model
from tencentpretrain.train.callbacks.saving import CheckpointConfig, Checkpointer
from tencentpretrain.train.checkpoint import CheckpointStore, open_checkpoint
from tencentpretrain.train.optim import OPTIMIZERS
from tencentpretrain.train.schedule import SCHEDULES
from tencentpretrain.train.tensor_file import read_tensors
from tencentpretrain.train.trainer import Trainer
from tencentpretrain.train.trainer_config import TrainerConfig
from tencentpretrain.types import Batch, Stream
from tests.helpers.models import model_config

TOPICS = 8


class Pairs:
    """Two texts about one of `TOPICS`: words of it in any order and number, and any others."""

    def __len__(self) -> int:
        return 200

    def make(self, epoch: int, index: int) -> dict[str, Any]:
        draw = generator(5, epoch, index)
        topic = 10 + 2 * int(draw.integers(TOPICS))
        return {
            name: np.concatenate((draw.integers(topic, topic + 2, 3), draw.integers(1, 10, n)))
            for name, n in (("src", int(draw.integers(1, 5))), ("pair", int(draw.integers(1, 3))))
        }

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        streams, tokens = {}, 0
        for name in ("src", "pair"):
            rows = [example[name] for example in examples]
            grid = Grid(rows, 1, 8)
            streams[name] = Stream({"ids": grid.fill(rows, 0)}, grid.layout())
            tokens += grid.tokens
        return Batch(streams, tokens=tokens)


def trainer_of(steps: int, run_dir: Path) -> Trainer:
    shrunk = {
        "hidden": 32,
        "embedding": {"dropout": 0},
        "encoder": {"layers": 1, "directions": 2, "dropout": 0},
        "target": {"contrast": {"temperature": 0.1, "size": 16}},
    }
    config = decode(TrainerConfig, {"steps": steps, "batch_size": 16, "log_every": steps})
    parallel = PARALLELS.build(decode(PARALLELS.config_class("none"), {"name": "none"}))
    model = build_model(model_config("siamese/lstm", shrunk), 10 + 2 * TOPICS, parallel.device)
    optimizer = OPTIMIZERS.build(
        decode(OPTIMIZERS.config_class("adamw"), {"name": "adamw", "lr": 0.02})
    )(model)
    store = CheckpointStore(run_dir)
    saving = Checkpointer(store, CheckpointConfig(every=1000), {}, "eval/loss", {})
    schedule = SCHEDULES.build(SCHEDULES.default("constant"), steps)
    loader = Loader(Pairs(), 16, 16, 0)
    return Trainer(
        model,
        optimizer,
        schedule,
        loader,
        config,
        steps=steps,
        seed=0,
        parallel=parallel,
        callbacks=[saving],
    )


def test_texts_of_one_topic_find_each_other(tmp_path: Path) -> None:
    trainer = trainer_of(60, tmp_path)
    trainer.fit()
    trainer.model.eval()
    fresh = Pairs().collate([Pairs().make(9, index) for index in range(64)])
    with torch.no_grad():
        scores = trainer.model.target["contrast"].logits(trainer.model.encode(fresh), fresh)
    best = scores.argmax(1)
    topics = (fresh.streams["src"].inputs["ids"][:, 0] - 10) // 2
    assert float((topics[best] == topics).float().mean()) > 0.9
    # A parameter without a dimension is saved and learned like any other.
    saved = open_checkpoint(tmp_path).path / "model.safetensors"
    scale = read_tensors(saved)["target.contrast.log_scale"]
    assert scale.shape == ()
    assert abs(float(scale) - math.log(1 / 0.1)) > 1e-3
