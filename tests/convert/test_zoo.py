"""Our own models, of every family that `transformers` has too, go there and come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tencentpretrain.convert.departing import Departing
from tencentpretrain.convert.huggingface import import_model
from tencentpretrain.convert.outgoing import choose_family, explicit
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import build_model
from tencentpretrain.train.load import state_tensors
from tencentpretrain.train.tensor_file import LazyTensors
from tests.helpers.models import VOCABULARY, model_config, randomise

STACK = {"layers": 2, "heads": 4, "ffn": 32}
GROUPED = {"encoder": {"kv_heads": 2}}
BOTH: dict[str, Any] = {"encoder": {"head_size": 6}, "decoder": {**STACK, "head_size": 6}}
DECODER = {"decoder": STACK}
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "bert/base": ("bert", {}),
    "bert_wwm/base": ("bert", {}),
    "minilm/l6-h384": ("bert", {}),
    "albert/base": ("albert", {"embedding": {"size": 8}}),
    "distilbert/base": ("distilbert", {}),
    "roberta/base": ("roberta", {}),
    "xlm_r/base": ("roberta", {}),
    "modernbert/base": ("modernbert", {}),
    "gpt2/small": ("gpt2", {}),
    "megatron/gpt2_8.3b": ("gpt2", {}),
    "bloom/560m": ("bloom", {"encoder": {"ffn": 64}}),
    "llama/7b": ("llama", {}),
    "llama3/8b": ("llama", GROUPED),
    "llama3_1/8b": ("llama", GROUPED),
    "llama3_2/1b": ("llama", GROUPED),
    "mistral/7b_v0.1": ("mistral", GROUPED),
    "mistral/7b_v0.3": ("llama", GROUPED),
    "qwen2/0.5b": ("qwen2", GROUPED),
    "qwen3/0.6b": ("qwen3", GROUPED),
    "t5/small": ("t5", BOTH),
    "t5_v1_1/small": ("t5", BOTH),
    "bart/base": ("bart", DECODER),
    "pegasus/base": ("pegasus", DECODER),
    "whisper/tiny": ("whisper", DECODER),
}
"""The family that is found for a model, and how the model is shrunk."""


@pytest.mark.parametrize("name", ZOO)
def test_a_model_of_ours_goes_and_comes_back(name: str) -> None:
    family, changes = ZOO[name]
    config = model_config(name, {"hidden": 16, "encoder": STACK}, changes)
    model = build_model(config, VOCABULARY)
    randomise(model)
    tensors = LazyTensors.of(state_tensors(model))
    outgoing = choose_family(Departing(config, tensors, specials={"pad": 0, "eos": 1}))
    assert outgoing.family.name == family
    back = import_model(outgoing.family, outgoing.config, outgoing.tensors, VOCABULARY)
    left_out = {"objective", "init"}
    before, after = explicit(config), explicit(back.model)
    assert {k: v for k, v in after.items() if k not in left_out} == {
        k: v for k, v in before.items() if k not in left_out
    }
    assert set(back.tensors) == set(tensors)
    assert all(torch.equal(back.tensors[key], tensors[key]) for key in tensors)
    assert not back.report.unread
    assert not back.report.aside


@pytest.mark.parametrize(
    ("name", "family", "changes", "reason"),
    [
        ("vit/tiny", "vit", {"encoder": {"qkv_bias": False, "key_bias": True}}, "key_bias"),
        ("vilt/tiny", "vilt", {"encoder": {"norm": "rms"}}, "encoder.norm"),
        ("clip/tiny", "clip", {"encoder": {"norm": "rms"}}, "encoder.norm"),
        ("bert/base", "bert", {"encoder": {"norm": "rms"}}, "encoder.norm"),
    ],
)
def test_a_misfit_is_told_of_the_family_that_reads_the_same(
    name: str, family: str, changes: dict[str, Any], reason: str
) -> None:
    config = model_config(name, {"hidden": 16, "encoder": {**STACK, **changes["encoder"]}})
    tensors = LazyTensors.of(state_tensors(build_model(config, VOCABULARY)))
    message = f"cannot be one of the family {family}: .*{reason}"
    with pytest.raises(CheckpointError, match=message):
        choose_family(Departing(config, tensors, specials={"pad": 0}))
