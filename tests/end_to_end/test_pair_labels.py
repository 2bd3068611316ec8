"""Labels of whole rows: a model can learn them by heart, and no length gives them away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier

from tencentpretrain.config import decode
from tencentpretrain.data.objectives import OBJECTIVES
from tencentpretrain.data.shards import open_shards
from tencentpretrain.model import build_model
from tencentpretrain.train.optim import OPTIMIZERS
from tencentpretrain.types import IGNORE
from tests.helpers.models import model_config, total_loss
from tests.helpers.objectives import objective
from tests.helpers.pretraining import write_shards
from tests.helpers.records import WORDS, record_objective, record_shards
from tests.helpers.shards import random_shards

ROWS = 64
SMALL = {
    "hidden": 16,
    "embedding": {"dropout": 0.0},
    "encoder": {"layers": 2, "heads": 2, "ffn": 32, "dropout": 0.0},
}


def pairs(name: str) -> Callable[[Path], Any]:
    """The objective `name` over documents on disk."""

    def make(folder: Path) -> Any:
        shards = open_shards(write_shards(folder, documents=80))
        config = decode(OBJECTIVES.config_class(name), {"name": name, "length": 32})
        return OBJECTIVES.build(config, shards, shards.tokenizer(), 0, None)

    return make


def classes(folder: Path) -> Any:
    """Texts of random words with random labels."""
    random = np.random.default_rng(0)
    lines = [
        "\t".join([str(random.choice(["a", "b"])), " ".join(random.choice(WORDS, 9))])
        for _ in range(ROWS)
    ]
    return record_objective("cls_mlm", record_shards(folder, "label", "\n".join(lines)), length=16)


@pytest.mark.parametrize(
    ("make", "target", "keys"),
    [
        (pairs("bert"), "nsp", {}),
        (pairs("albert"), "sop", {}),
        (classes, "classify", {"classes": 2}),
    ],
    ids=["bert", "albert", "cls_mlm"],
)
def test_labels_of_rows_are_learned_by_heart_beside_masks(
    make: Callable[[Path], Any], target: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    made = make(tmp_path)
    batch = made.collate([made.make(0, index) for index in range(ROWS)])
    heads = {"nsp": None, "mlm": {}, target: keys}
    config = model_config("bert/tiny", SMALL, {"target": heads, "objective": None})
    model = build_model(config, made.tokenizer.vocab_size).train()
    choice = decode(OPTIMIZERS.config_class("adamw"), {"name": "adamw", "lr": 0.01})
    optimizer = OPTIMIZERS.build(choice)(model)
    start = model(batch).losses["mlm"].value.item()
    for _ in range(60):
        total_loss(model(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    output = model(batch)
    assert output.metrics[f"{target}/accuracy"].value.item() > 0.95
    assert output.losses["mlm"].value.item() < 0.8 * start


@pytest.mark.parametrize(("name", "target"), [("bert", "nsp"), ("albert", "sop")])
def test_lengths_do_not_tell_the_label(name: str, target: str) -> None:
    made = objective(name, random_shards(600), length=48)
    batch = made.collate([made.make(0, index) for index in range(len(made))])
    labels, stream = batch.labels[target].values, batch.streams["src"]
    seconds = (stream.inputs["segments"] * stream.layout.valid).sum(1)
    features = torch.stack([stream.layout.valid.sum(1) - seconds, seconds], 1)
    known = labels != IGNORE
    x, y = features[known].numpy(), labels[known].numpy()
    half = len(y) // 2
    assert half > 800
    tree = DecisionTreeClassifier(max_depth=5, random_state=0).fit(x[:half], y[:half])
    usual = max(np.mean(y[half:]), 1 - np.mean(y[half:]))
    assert tree.score(x[half:], y[half:]) < usual + 0.04
