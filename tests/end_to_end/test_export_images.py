"""Shipped models of images are pre-trained, exported, and loaded by `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.cli import main
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.weights import read_json
from tencentpretrain.types import Batch, Layout, Stream
from tests.helpers.image_runs import preprocess_pictures, run
from tests.helpers.models import layout_of
from tests.helpers.pictures import class_folders
from tests.helpers.saved import load_saved

transformers = pytest.importorskip("transformers")

TINY = {
    "model.hidden": 16,
    "model.encoder.layers": 2,
    "model.encoder.heads": 2,
    "model.encoder.ffn": 32,
    "optim.lr": 0.01,
}
IMAGES = 3
EAGER: dict[str, Any] = {"attn_implementation": "eager", "output_loading_info": True}


def pixels(size: int) -> Tensor:
    return torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """A run of the shipped ViT."""
    words = ["corpus.format=image", f"corpus.path={class_folders(tmp_path / 'data')}", "workers=1"]
    assert main("preprocess", [*words, f"output={tmp_path / 'shards'}"]) == 0
    keys = {
        "model.target.classify.classes": 2,
        "model.embedding.parts.patch.image_size": 8,
        "model.embedding.parts.patch.patch_size": 4,
        "model.objective.transform.size": 8,
        "model.objective.transform.resize": 8,
    }
    assert run(tmp_path / "shards", tmp_path / "run", "vit/tiny", **TINY, **keys) == 0
    return tmp_path / "run"


@pytest.fixture
def vilt(tmp_path: Path) -> Path:
    """A run of the shipped ViLT."""
    shards = preprocess_pictures(tmp_path)
    image = "model.embedding.parts.concat.embeddings.image.parts.patch"
    keys = {f"{image}.image_size": 16, f"{image}.patch_size": 4, "model.objective.masking": "token"}
    assert run(shards, tmp_path / "run", "vilt/tiny", **TINY, **keys) == 0
    return tmp_path / "run"


def test_vit_goes_without_its_classes_and_with_its_hidden_layer(vit: Path, tmp_path: Path) -> None:
    departure = depart(vit)
    departure.write(tmp_path / "theirs")
    theirs, info = transformers.ViTModel.from_pretrained(tmp_path / "theirs", **EAGER)
    assert not any(info.values()), info
    images, ours = pixels(8), load_saved(vit)
    stream = Stream({"pixels": images}, Layout(torch.ones(IMAGES, 1, dtype=torch.bool)))
    states = ours.encode(Batch({"src": stream})).hidden.states
    found = theirs.eval()(images)
    close(states, found.last_hidden_state)
    head: Any = ours.target["classify"]
    close(torch.tanh(head.dense(states[:, 0])), found.pooler_output)
    assert any(
        "`classify` is left out" in line and "target.classify.output.weight" in line
        for line in departure.report.lines()
    )
    written = read_json(tmp_path / "theirs" / "preprocessor_config.json")
    assert written["size"] == {"shortest_edge": 8}


def test_vilt_goes_with_its_masked_words(vilt: Path, tmp_path: Path) -> None:
    departure = depart(vilt)
    departure.write(tmp_path / "theirs")
    theirs, info = transformers.ViltForMaskedLM.from_pretrained(tmp_path / "theirs", **EAGER)
    assert not any(info.values()), info
    images, ours, layout = pixels(16), load_saved(vilt), layout_of((7, 4, 6))
    ids = torch.randint(5, 11, layout.valid.shape, generator=torch.Generator().manual_seed(1))
    ids = ids.masked_fill(~layout.valid, 0)
    states = ours.encode(
        Batch({"src": Stream({"ids": ids, "pixels": images}, layout)})
    ).hidden.states
    found = theirs.eval().vilt(ids, layout.valid.long(), pixel_values=images)
    words = layout.valid.shape[1]
    close(states[:, :words][layout.valid], found.last_hidden_state[:, :words][layout.valid])
    # There the patches have an order that is drawn anew each time.
    close(states[:, words:].sum(1), found.last_hidden_state[:, words:].sum(1))
    head: Any = ours.target["match"]
    close(torch.tanh(head.dense(states[:, 0])), found.pooler_output)
    assert any("`match` is left out" in line for line in departure.report.lines())
