"""The keys of each shipped family are those of its paper or its released weights."""

from typing import Any

import pytest

from tencentpretrain.model_files import model_names
from tests.helpers.models import MODELS
from tests.helpers.zoo import shipped

NAMES = model_names([MODELS])
STACKS: dict[str, dict[str, Any]] = {
    "bert": {"norm_order": "post", "norm_eps": 1e-12, "activation": "gelu", "dropout": 0.1},
    "roberta": {"norm_order": "post", "norm_eps": 1e-5, "activation": "gelu", "dropout": 0.1},
    "albert": {
        "norm_order": "post",
        "norm_eps": 1e-12,
        "activation": "gelu_tanh",
        "dropout": 0.0,
        "share_blocks": True,
    },
    "gpt2": {
        "norm_order": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "dropout": 0.1,
        "mask": "causal",
    },
    "t5": {
        "norm": "t5",
        "norm_order": "pre",
        "norm_eps": 1e-6,
        "activation": "relu",
        "gated": False,
        "bias": False,
        "scale_scores": False,
        "relative": {"buckets": 32, "distance": 128},
        "dropout": 0.1,
    },
    "t5_v1_1": {"norm": "t5", "activation": "gelu_tanh", "gated": True, "dropout": 0.0},
    "bart": {"norm_order": "post", "norm_eps": 1e-5, "activation": "gelu", "dropout": 0.1},
    "pegasus": {"norm_order": "pre", "norm_eps": 1e-5, "activation": "relu", "dropout": 0.1},
    "transformer": {"norm_order": "post", "activation": "relu", "attention_dropout": 0.0},
    "llama": {
        "norm": "rms",
        "norm_order": "pre",
        "norm_eps": 1e-6,
        "activation": "silu",
        "gated": True,
        "bias": False,
        "qkv_bias": None,
        "mask": "causal",
        "window": None,
        "dropout": 0.0,
    },
    "llama2": {"norm": "rms", "norm_eps": 1e-5, "activation": "silu", "bias": False},
    "llama3": {"norm": "rms", "norm_eps": 1e-5, "kv_heads": 8, "bias": False},
    "llama3_1": {"norm_eps": 1e-5, "kv_heads": 8},
    "llama3_2": {"norm_eps": 1e-5, "kv_heads": 8},
    "mistral": {"norm": "rms", "norm_eps": 1e-5, "kv_heads": 8, "bias": False},
    "qwen2": {"norm_eps": 1e-6, "bias": False, "qkv_bias": True, "qk_norm": False},
    "qwen3": {"norm_eps": 1e-6, "bias": False, "qkv_bias": None, "qk_norm": True},
    "bloom": {
        "norm": "layer",
        "norm_order": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "alibi": True,
        "bias": True,
        "mask": "causal",
        "dropout": 0.0,
    },
    "sbert": {"norm_order": "post", "norm_eps": 1e-12, "activation": "gelu", "dropout": 0.1},
    "modernbert": {
        "norm": "layer_gain",
        "norm_order": "pre",
        "norm_eps": 1e-5,
        "first_norm": False,
        "activation": "gelu",
        "gated": True,
        "bias": False,
        "window": 64,
        "global_every": 3,
        "mask": "full",
        "dropout": 0.0,
    },
}
THETAS = {
    "llama": 1e4,
    "llama2": 1e4,
    "llama3": 5e5,
    "llama3_1": 5e5,
    "llama3_2": 5e5,
    "qwen2": 1e6,
    "qwen3": 1e6,
    "modernbert": 1.6e5,
}
SCALED = {"llama3_1": 8.0, "llama3_2": 32.0}
RESIDUAL = {"gpt2", "bloom", "modernbert"}
OBJECTIVES = {
    "t5": {"name": "t5", "mask_rate": 0.15, "mean_span": 3.0, "pack": True},
    "t5_v1_1": {"name": "t5", "mask_rate": 0.15, "mean_span": 3.0, "pack": True},
    "bart": {"name": "bart", "mask_rate": 0.3, "mean_span": 3.0, "permute_rate": 1.0},
    "pegasus": {"name": "pegasus", "gap_rate": 0.3, "select": "rouge"},
    "transformer": {"name": "translate"},
    "sbert": {"name": "pairs"},
    "modernbert": {"name": "mlm", "mask_rate": 0.3},
}
OBJECTIVES |= {family: {"name": "lm"} for family in ("llama", "mistral", "qwen2", "qwen3", "bloom")}


def of_family(family: str) -> list[str]:
    return [name for name in NAMES if name.startswith(f"{family}/")]


def parts_of(data: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    """Those of the parts `keys` that a model has."""
    return [data[key] for key in keys if data[key] is not None]


@pytest.mark.parametrize("family", STACKS)
def test_blocks_have_their_published_keys(family: str) -> None:
    assert of_family(family)
    for name in of_family(family):
        data = shipped(name).to_dict()
        for stack in parts_of(data, "encoder", "decoder"):
            assert {key: stack[key] for key in STACKS[family]} == STACKS[family], name
        for embedding in parts_of(data, "embedding", "target_embedding"):
            assert embedding["dropout"] == data["encoder"]["dropout"]
            if embedding["norm"] != "none":
                assert embedding["norm"] == data["encoder"]["norm"]
                assert embedding["norm_eps"] == data["encoder"]["norm_eps"]
        if data["decoder"] is not None:
            both = [data["encoder"] | {"mask": "causal"}, data["decoder"]]
            assert both[0] == both[1]
        if "mlm" in data["target"]:
            mlm = data["target"]["mlm"]
            assert mlm["norm_eps"] == data["encoder"]["norm_eps"]
            assert mlm["norm"] == data["encoder"]["norm"]
            assert mlm["activation"] == data["encoder"]["activation"]
            assert mlm["bias"] == data["encoder"]["bias"]


@pytest.mark.parametrize("family", THETAS)
def test_positions_turn_as_published(family: str) -> None:
    for name in of_family(family):
        rotary = shipped(name).to_dict()["encoder"]["rotary"]
        assert rotary["theta"] == THETAS[family]
        assert rotary["local_theta"] == (1e4 if family == "modernbert" else None)
        scaling = {"kind": "llama3", "factor": SCALED.get(family), "length": 8192}
        scaling |= {"low": 1.0, "high": 4.0}
        assert rotary["scaling"] == (scaling if family in SCALED else None)


def test_only_the_first_mistral_has_a_window() -> None:
    first, third = (shipped(f"mistral/7b_v0.{n}").to_dict()["encoder"] for n in (1, 3))
    # 4,096 tokens with the one that sees them.
    assert (first["window"], third["window"]) == (4095, None)
    assert (first["rotary"]["theta"], third["rotary"]["theta"]) == (1e4, 1e6)


def test_embeddings_are_normalised_and_positioned_as_published() -> None:
    parts = {"bloom": {"word"}, "llama": {"word"}, "t5": {"word"}, "modernbert": {"word"}}
    parts |= {"bart": {"word", "position"}, "pegasus": {"word", "sinusoidal"}}
    parts |= {"transformer": {"word", "sinusoidal"}, "sbert": {"word", "position", "segment"}}
    norms = {"bloom": "layer", "bart": "layer", "sbert": "layer", "modernbert": "layer_gain"}
    for family, expected in parts.items():
        for name in of_family(family):
            data = shipped(name).to_dict()
            for embedding in parts_of(data, "embedding", "target_embedding"):
                assert embedding["parts"].keys() == expected
                assert embedding["norm"] == norms.get(family, "none")
                is_scaled = embedding["parts"]["word"]["scale"]
                assert is_scaled == (family in ("pegasus", "transformer"))
    layouts = {"pegasus/large": "halves", "transformer/base": "interleaved"}
    for name, layout in layouts.items():
        waves = shipped(name).to_dict()["embedding"]["parts"]["sinusoidal"]
        assert (waves["layout"], waves["offset"], waves["inclusive"]) == (layout, 0, False)


@pytest.mark.parametrize("family", OBJECTIVES)
def test_objectives_are_the_published_ones(family: str) -> None:
    for name in of_family(family):
        objective = shipped(name).to_dict()["objective"]
        assert {key: objective[key] for key in OBJECTIVES[family]} == OBJECTIVES[family]


def test_output_layers_are_the_published_ones() -> None:
    for family, smoothing, is_scaled in (
        ("t5", 0.0, True),
        ("t5_v1_1", 0.0, False),
        ("bart", 0.0, False),
        ("pegasus", 0.0, False),
        ("transformer", 0.1, False),
    ):
        for name in of_family(family):
            lm = shipped(name).to_dict()["target"]["lm"]
            found = lm["label_smoothing"], lm["scale_states"], lm["bias"]
            assert found == (smoothing, is_scaled, False)
    for name in of_family("sbert"):
        contrast = shipped(name).to_dict()["target"]["contrast"]
        assert (contrast["pooling"], contrast["temperature"]) == ("mean", 0.05)
        assert not contrast["learn_temperature"]


@pytest.mark.parametrize("family", STACKS)
def test_weights_start_as_published(family: str) -> None:
    for name in of_family(family):
        config, std = shipped(name), 0.02
        if family in ("t5", "t5_v1_1"):
            std = 1.0
        elif family == "transformer":
            std = config.hidden**-0.5
        elif family == "bloom" and name != "bloom/tiny":
            std = 0.0048
        assert config.init.std == pytest.approx(std, rel=1e-3)
        assert config.init.scale_residual == (family in RESIDUAL)
        assert config.init.fan_in == (family in ("t5", "t5_v1_1", "transformer"))
