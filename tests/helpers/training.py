"""A tiny model, examples with unequal supervision, and a trainer over them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tencentpretrain.config import decode
from tencentpretrain.data.loader import Loader
from tencentpretrain.data.order import generator
from tencentpretrain.distributed.parallel import PARALLELS
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.train.callbacks.base import Callback
from tencentpretrain.train.callbacks.saving import CheckpointConfig, Checkpointer
from tencentpretrain.train.checkpoint import CheckpointStore
from tencentpretrain.train.optim import OPTIMIZERS
from tencentpretrain.train.schedule import SCHEDULES
from tencentpretrain.train.trainer import Trainer
from tencentpretrain.train.trainer_config import TrainerConfig
from tencentpretrain.types import Batch, Labels, Layout, Stream

VOCABULARY = 23
Example = dict[str, Any]


def tiny_model_config(dropout: float = 0.1) -> ModelConfig:
    return decode(
        ModelConfig,
        {
            "hidden": 16,
            "embedding": {
                "parts": {"word": {}, "position": {"length": 16}, "segment": {}},
                "dropout": dropout,
            },
            "encoder": {"layers": 2, "heads": 2, "dropout": dropout},
            "target": {"mlm": {}, "nsp": {}},
            "ties": {"target.mlm.output.weight": "embedding.word.weight"},
        },
    )


class RandomExamples:
    """Rows of random ids with different lengths and numbers of supervised positions."""

    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def make(self, epoch: int, index: int) -> Example:
        draw = generator(7, epoch, index)
        length = int(draw.integers(4, 13))
        ids = draw.integers(1, VOCABULARY, length)
        chosen = np.sort(draw.permutation(length)[: int(draw.integers(1, length))])
        return {"ids": ids, "index": chosen, "labels": ids[chosen], "label": index % 2}

    def collate(self, examples: Sequence[Example]) -> Batch:
        longest = max(len(example["ids"]) for example in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.int64)
        valid = torch.zeros(len(examples), longest, dtype=torch.bool)
        values, index = [], []
        for row, example in enumerate(examples):
            length = len(example["ids"])
            ids[row, :length] = torch.from_numpy(example["ids"])
            valid[row, :length] = True
            values.append(torch.from_numpy(example["labels"]))
            index.append(torch.from_numpy(example["index"]) + row * longest)
        labels = {
            "mlm": Labels(torch.cat(values), torch.cat(index)),
            "nsp": Labels(torch.tensor([example["label"] for example in examples])),
        }
        return Batch({"src": Stream({"ids": ids}, Layout.of(valid))}, labels, int(valid.sum()))


def make_trainer(
    run_dir: Path | None = None,
    *,
    steps: int = 10,
    every: int = 100,
    seed: int = 0,
    examples: Any = None,
    dropout: float = 0.1,
    optim: dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    device: str = "cpu",
    **keys: Any,
) -> Trainer:
    """A trainer that saves to `run_dir`, at the newest state that is there."""
    # Not auto: what is compared must not depend on what the machine is fast at.
    usual = {"steps": steps, "batch_size": 8, "log_every": 3, "precision": "fp32"}
    config = decode(TrainerConfig, usual | keys)
    parallel = PARALLELS.build(
        decode(PARALLELS.config_class("none"), {"name": "none", "device": device})
    )
    model: Model = build_model(tiny_model_config(dropout), VOCABULARY, parallel.device, seed)
    choice = {"name": "adamw", "lr": 0.01, **(optim or {})}
    optimizer = OPTIMIZERS.build(decode(OPTIMIZERS.config_class(choice["name"]), choice))(model)
    saving = []
    if run_dir is not None:
        rhythm = CheckpointConfig(every=every)
        saving = [Checkpointer(CheckpointStore(run_dir), rhythm, {}, "eval/loss", {})]
    trainer = Trainer(
        model,
        optimizer,
        SCHEDULES.build(SCHEDULES.default("linear"), steps),
        Loader(
            examples if examples is not None else RandomExamples(),
            config.batch_size,
            config.micro_batch_size or config.batch_size,
            seed,
        ),
        config,
        steps=steps,
        seed=seed,
        parallel=parallel,
        callbacks=[*callbacks, *saving],
    )
    if saving:
        trainer.restore = saving[0].restore
        saving[0].restore(trainer)
    return trainer
