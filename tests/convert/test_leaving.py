"""Targets that no class of `transformers` has are left out, and told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tencentpretrain.convert.departing import Departing
from tencentpretrain.convert.families import FAMILIES
from tencentpretrain.convert.outgoing import Outgoing, choose_family, export_model
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import build_model
from tencentpretrain.train.load import state_tensors
from tencentpretrain.train.tensor_file import LazyTensors
from tests.helpers.models import TINY, VOCABULARY, model_config, randomise


def departing(name: str, **changes: Any) -> Departing:
    config = model_config(name, TINY, changes)
    model = build_model(config, VOCABULARY)
    randomise(model)
    return Departing(config, LazyTensors.of(state_tensors(model)), specials={"pad": 0})


def remark(outgoing: Outgoing) -> str:
    return "\n".join(outgoing.report.remarks)


def test_a_hidden_layer_before_classes_becomes_the_pooler() -> None:
    ours = departing("vit/tiny")
    outgoing = choose_family(ours)
    assert outgoing.config["architectures"] == ["ViTModel"]
    pooler = outgoing.tensors["pooler.dense.weight"]
    assert torch.equal(pooler, ours.tensors["target.classify.dense.weight"])
    assert "target.classify.output.weight" in remark(outgoing)
    assert "becomes `vit.pooler.dense`" in remark(outgoing)


def test_a_hidden_layer_that_reads_the_patches_is_no_pooler() -> None:
    outgoing = choose_family(departing("vit/tiny", target={"classify": {"pooling": "rest"}}))
    assert not outgoing.tensors["pooler.dense.weight"].any()
    assert "target.classify.dense.weight" in remark(outgoing)


@pytest.mark.parametrize(
    ("kept", "architecture"), [(("mlm", "match"), "ViltForMaskedLM"), (("match",), "ViltModel")]
)
def test_matching_by_two_classes_is_left_out(kept: tuple[str, ...], architecture: str) -> None:
    ours = departing("vilt/tiny")
    if len(kept) == 1:
        target = {"match": ours.model.target["match"]}
        model = ours.model.model_copy(update={"target": target, "ties": {}})
        names = [name for name in ours.tensors if name.startswith("target.mlm.")]
        ours = Departing(model, ours.tensors.without(names), specials={"pad": 0})
    outgoing = choose_family(ours)
    assert outgoing.config["architectures"] == [architecture]
    prefix = "vilt." if architecture != "ViltModel" else ""
    pooler = outgoing.tensors[f"{prefix}pooler.dense.weight"]
    assert torch.equal(pooler, ours.tensors["target.match.dense.weight"])
    assert "target.match.output.weight" in remark(outgoing)


def test_where_a_model_must_be_whole_nothing_is_left_out() -> None:
    with pytest.raises(CheckpointError, match=r"classify\.dense"):
        export_model(FAMILIES["vit"], departing("vit/tiny"), is_whole=True)
