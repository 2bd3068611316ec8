"""Streams that are read by parts of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.types import Batch, Stream
from tests.helpers.models import layout_of, model_config, randomise

TEXT = {
    "embedding": {"parts": {"word": {}, "position": {"length": 8}}},
    "encoder": {"layers": 2, "heads": 2, "ffn": 24, "norm_order": "pre", "mask": "causal"},
}
IMAGE = {
    "hidden": 12,
    "embedding": {"parts": {"word": {}}, "size": 6},
    "encoder": {"layers": 3, "heads": 3, "norm_order": "pre"},
}


def config_of(**changes: Any) -> ModelConfig:
    data: dict[str, Any] = {"hidden": 16, **TEXT, "towers": {"image": IMAGE}}
    return decode(ModelConfig, data | changes)


def batch_of() -> Batch:
    ids = torch.arange(12).view(2, 6)
    return Batch({name: Stream({"ids": ids}, layout_of([6, 4])) for name in ("text", "image")})


def test_a_stream_is_read_by_the_tower_of_its_name() -> None:
    model = build_model(config_of(), 20).eval()
    randomise(model)
    out, batch = model.encode(batch_of()), batch_of()
    assert out.encoded["text"].states.shape == (2, 6, 16)
    assert out.encoded["image"].states.shape == (2, 6, 12)
    assert out.hidden is out.encoded["text"]
    tower = build_model(config_of(hidden=12, **{k: IMAGE[k] for k in TEXT}, towers={}), 20).eval()
    prefix = "towers.image."
    tower.load_state_dict(
        {n.removeprefix(prefix): p for n, p in model.state_dict().items() if n.startswith(prefix)}
    )
    alone = tower.read(batch.streams["image"])
    torch.testing.assert_close(out.encoded["image"].states, alone.states)


def test_without_a_tower_of_their_name_streams_share_one_model() -> None:
    model = build_model(config_of(towers={}), 20).eval()
    out = model.encode(batch_of())
    assert torch.equal(out.encoded["text"].states, out.encoded["image"].states)


def test_stacks_and_embeddings_are_those_of_all_parts() -> None:
    model = build_model(config_of(init={"scale_residual": True}), 20)
    tower = model.towers["image"]
    assert model.stacks() == [model.encoder, tower.encoder]
    assert model.embeddings() == [model.embedding, tower.embedding]
    assert sum(len(stack.blocks()) for stack in model.stacks()) == 5


def test_residual_layers_are_scaled_by_the_depth_of_their_own_stack() -> None:
    wide = {"hidden": 96, "encoder": IMAGE["encoder"]}
    changes = {"towers": {"image": IMAGE | wide}, "init": {"scale_residual": True, "std": 0.1}}
    model = build_model(config_of(**changes), 20)
    found = model.towers["image"].encoder.residual_outputs()[0].weight
    assert float(found.detach().std()) == pytest.approx(0.1 / 6**0.5, rel=0.05)


def test_operations_are_counted_in_the_stack_that_reads_a_stream() -> None:
    model, batch = build_model(config_of(), 20, "meta"), batch_of()
    expected = 3 * 10 * (model.encoder.flops(6) + model.towers["image"].encoder.flops(6))
    assert model.flops(batch) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"towers": {"tgt": IMAGE}}, "a tower must not be called `tgt`"),
        ({"towers": {"keys": IMAGE}}, "a tower must not be called `keys`"),
        ({"towers": {"image": IMAGE | {"hidden": 13}}},
         r"towers.image: encoder.heads must divide the width hidden=13, but is 3"),
        ({"objective": {"name": "pairs"}, "target": {"contrast": {"size": 4}}},
         r"towers.image reads a stream that objective.name=pairs does not make; it makes "
         "src, pair"),
    ],
)  # fmt: skip
def test_towers_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**changes)


def test_parameters_of_one_tower_can_be_those_of_another() -> None:
    same = {"hidden": 16, **TEXT}
    ties = {"towers.image.embedding.word.weight": "embedding.word.weight"}
    model: Model = build_model(config_of(towers={"image": same}, ties=ties), 20)
    assert model.towers["image"].embedding.word.weight is model.embedding.word.weight


@pytest.mark.parametrize(
    ("name", "objective", "message"),
    [
        ("clip/base_32", {"length": 78}, r"at most embedding.parts.position.length=77, but is 78"),
        ("vilt/base", {"length": 41},
         r"embedding.parts.concat.embeddings.text.parts.position.length=40, but is 41"),
        ("clip/base_32", {"transform": {"size": 160}}, r"transform.size must be .*224 x 224"),
        ("vilt/base", {"transform": {"size": 224}}, r"transform.size must be .*384 x 384"),
    ],
)  # fmt: skip
def test_images_and_rows_must_fit_the_parts_that_read_them(
    name: str, objective: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config(name, {"objective": objective})
