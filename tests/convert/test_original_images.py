"""Files of TencentPretrain's ViT and BEiT compute here what their own formulae compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.convert.original import import_original
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import build_model
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.tensor_file import LazyTensors
from tencentpretrain.types import Batch, Layout, Stream
from tests.helpers.original import Original
from tests.helpers.original_files import HIDDEN, TRANSFORMER, VOCABULARY, random_state

IMAGE = TRANSFORMER | {
    "image_height": 24,
    "image_width": 16,
    "patch_size": 8,
    "channels_num": 3,
    "max_seq_length": 7,
}
VIT = IMAGE | {
    "embedding": ["patch", "pos"],
    "remove_embedding_layernorm": True,
    "layernorm_positioning": "pre",
    "target": ["cls"],
    "data_processor": "vit",
}
BEIT = IMAGE | {
    "embedding": ["masked_patch", "pos"],
    "target": ["mlm"],
    "data_processor": "beit",
    "tie_weights": False,
}
CLASSES = 5


class ImageOriginal(Original):
    """The formulae of `tencentpretrain/embeddings/{patch,masked_patch}_embedding.py`."""

    pixels: Tensor
    masked: Tensor | None = None

    def embed(self, side: str, key: str, ids: Tensor, seg: Tensor) -> Tensor:
        name = "embedding.masked_patch" if "masked_patch" in self.config[key] else "embedding.patch"
        weight = self.state[f"{name}.projection.weight"]
        patches = F.conv2d(self.pixels, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
        if self.masked is not None:
            patches[self.masked] = self.state[f"{name}.mask_emb"][0]
        first = self.state[f"{name}.cls_emb"].expand(len(patches), -1, -1)
        total = torch.cat([first, patches], 1) + self.state["embedding.pos.embedding.weight"]
        if self.config.get("remove_embedding_layernorm"):
            return total
        return self.norm("embedding.layer_norm", total, is_normal=True)


def image_state(config: dict[str, Any]) -> dict[str, Tensor]:
    state = random_state(config)
    name = f"embedding.{config['embedding'][0]}"
    state[f"{name}.projection.weight"] = torch.randn(HIDDEN, 3, 8, 8) * 0.1
    state[f"{name}.cls_emb"] = torch.randn(1, 1, HIDDEN)
    if "masked_patch" in config["embedding"]:
        state[f"{name}.mask_emb"] = torch.randn(1, HIDDEN)
    if config["target"] == ["cls"]:
        state["target.cls.linear_1.weight"] = torch.randn(HIDDEN, HIDDEN) * 0.3
        state["target.cls.linear_1.bias"] = torch.randn(HIDDEN)
        state["target.cls.linear_2.weight"] = torch.randn(CLASSES, HIDDEN)
        state["target.cls.linear_2.bias"] = torch.randn(CLASSES)
    return state


@pytest.mark.parametrize("config", [VIT, BEIT])
def test_states_and_logits_are_those_of_the_original(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    state = image_state(config)
    incoming = import_original(config, LazyTensors.of(state))
    ours = build_model(incoming.model, 1).eval()
    load_weights(ours, incoming.tensors)
    assert "patch_position" in incoming.model.embedding.parts
    assert not incoming.report.aside
    theirs = ImageOriginal(config, state)
    theirs.pixels = torch.randn(2, 3, 24, 16)
    inputs = {"pixels": theirs.pixels}
    if config is BEIT:
        inputs["masked"] = theirs.masked = torch.rand(2, 6) < 0.5
    batch = Batch({"src": Stream(inputs, Layout(torch.ones(2, 1, dtype=torch.bool)))})
    expected = theirs.encode(torch.zeros(0), torch.ones(2, 7))
    out = ours.encode(batch)
    torch.testing.assert_close(out.hidden.states, expected, rtol=1e-5, atol=1e-5)
    if config is VIT:
        logits = ours.target["classify"].logits(out, batch)
        pooled = torch.tanh(theirs.linear("target.cls.linear_1", expected[:, 0]))
        wanted = theirs.linear("target.cls.linear_2", pooled)
    else:
        logits = ours.target["mlm"].logits(out, batch)
        wanted = theirs.head("mlm", expected).flatten(0, 1)
        assert incoming.model.vocabulary == VOCABULARY
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


def test_words_beside_patches_are_refused() -> None:
    config = VIT | {"embedding": ["patch", "word", "pos"]}
    with pytest.raises(CheckpointError, match="word beside patches"):
        import_original(config, LazyTensors.of(image_state(VIT)))
