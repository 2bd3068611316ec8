"""LLaMA (Touvron et al., 2023) and its relatives: Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tencentpretrain.convert.family import Family, Head, Plain, Specials, untied_by_default
from tencentpretrain.convert.keys import ACTIVATIONS, Key, Settings
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import Turned
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors

LAYER: Final = {
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
    "feed_forward_norm": "post_attention_layernorm",
}
OURS, THEIRS = "encoder.layers.{n}.", "model.layers.{n}."
RULES: Final = (
    *modules({"embedding.word": "model.embed_tokens", "encoder.norm": "model.norm"}),
    *modules(LAYER, OURS, THEIRS),
    *modules({"attention.query": "self_attn.q_proj"}, OURS, THEIRS, Turned("heads")),
    *modules({"attention.key": "self_attn.k_proj"}, OURS, THEIRS, Turned("kv_heads")),
)
HEAD_NORMS: Final = modules(
    {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"},
    OURS,
    THEIRS,
)
KEYS: Final = (
    Key("hidden", "hidden_size"),
    Key("encoder.layers", "num_hidden_layers"),
    Key("encoder.heads", "num_attention_heads"),
    Key("encoder.kv_heads", "num_key_value_heads", None),
    Key("encoder.head_size", "head_dim", None),
    Key("encoder.ffn", "intermediate_size"),
    Key("encoder.activation", "hidden_act", "silu", ACTIVATIONS),
    Key("encoder.norm_eps", "rms_norm_eps", 1e-6),
    Key("encoder.attention_dropout", "attention_dropout", 0.0),
    Key("init.std", "initializer_range", 0.02),
)
BASE: Final[dict[str, Any]] = {
    "embedding": {"parts": {"word": {}}, "norm": "none", "dropout": 0.0},
    "encoder": {
        "name": "transformer",
        "norm": "rms",
        "norm_order": "pre",
        "gated": True,
        "bias": False,
        "mask": "causal",
        "dropout": 0.0,
    },
}
LENGTH: Final = 2048
"""Positions that config.json says where nothing else is known."""


def read_rotary(settings: Settings) -> dict[str, Any]:
    """Rotary positions as written by version 5 of `transformers`, or by older ones.

    Raises:
        CheckpointError: for a kind of scaling that is unknown here.
    """
    older, theta = settings.get("rope_scaling", None), settings.get("rope_theta", 10000.0)
    values = settings.get("rope_parameters", None) or older or {}
    theta = values.get("rope_theta") or theta
    kind = values.get("rope_type", values.get("type", "default"))
    if float(values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise CheckpointError("config.json: there is no part with partly turned heads here")
    if kind == "default":
        return {"theta": theta}
    if kind not in ("linear", "dynamic", "llama3"):
        raise CheckpointError(
            f"config.json: rotary positions of the type `{kind}` are unknown here; there are "
            "default, linear, dynamic, llama3"
        )
    length = values.get("original_max_position_embeddings")
    scaling = {
        "kind": kind,
        "factor": values.get("factor"),
        "length": length or settings.number("max_position_embeddings", LENGTH),
        "low": values.get("low_freq_factor", 1.0),
        "high": values.get("high_freq_factor", 4.0),
    }
    return {"theta": theta, "scaling": scaling}


def write_rotary(rotary: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json for rotary positions of ours, for versions 5 and older ones."""
    theta, scaling = rotary["theta"], rotary["scaling"]
    values: dict[str, Any] | None = None
    if scaling is not None:
        values = {"rope_type": scaling["kind"], "factor": scaling["factor"]}
        if scaling["kind"] == "llama3":
            values |= {
                "low_freq_factor": scaling["low"],
                "high_freq_factor": scaling["high"],
                "original_max_position_embeddings": scaling["length"],
            }
    newer = {"rope_type": "default", **(values or {}), "rope_theta": theta}
    return {"rope_theta": theta, "rope_scaling": values, "rope_parameters": newer}


def _to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    data["encoder"]["rotary"] = read_rotary(settings)
    settings.get("max_position_embeddings", LENGTH)
    return ()


def _to_config(config: Plain, data: Plain, specials: Specials) -> None:
    rotary = data["encoder"]["rotary"]
    if rotary is None:
        raise CheckpointError("it has no rotary positions")
    config |= write_rotary(rotary)
    scaling = rotary["scaling"]
    if scaling is None:
        config.setdefault(
            "max_position_embeddings", (data["objective"] or {}).get("length", LENGTH)
        )
    elif scaling["kind"] == "dynamic":
        config["max_position_embeddings"] = scaling["length"]
    else:
        # Longer rows than those of training are what the scaling is for.
        longest = int(scaling["length"] * scaling["factor"])
        config.setdefault("max_position_embeddings", longest)


def _mistral_to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    window = settings.get("sliding_window", None)
    # Theirs counts the position itself.
    data["encoder"]["window"] = None if window is None else window - 1
    return _to_model(data, settings, tensors)


def _mistral_to_config(config: Plain, data: Plain, specials: Specials) -> None:
    window = data["encoder"]["window"]
    config["sliding_window"] = None if window is None else window + 1
    _to_config(config, data, specials)


def _qwen_to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    kinds = settings.get("layer_types", ())
    if any(kind != "full_attention" for kind in kinds):
        raise CheckpointError(f"config.json: all layer_types must be full_attention, not {kinds}")
    settings.get("sliding_window", None)
    return _to_model(data, settings, tensors)


NO_WINDOW: Final = {"use_sliding_window": False}


def _family(name: str, stem: str, **changes: Any) -> Family:
    plain: dict[str, Any] = {
        "model_type": name,
        "base": BASE,
        "keys": KEYS,
        "expected": {"attention_bias": False, "mlp_bias": False},
        "prefix": "model.",
        "table": Table(
            rules=(*RULES, *changes.pop("rules", ())),
            recomputed=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
            spellings=((r"^(?=(embed_tokens|layers|norm)\.)", "model."),),
        ),
        "heads": (Head("lm", (Rule(("target.lm.output.weight",), ("lm_head.weight",)),)),),
        "architectures": {"": f"{stem}Model", "lm": f"{stem}ForCausalLM"},
        "aside": {r"score\..*": "there is no target of this kind"},
        "is_tied": untied_by_default,
        "to_model": _to_model,
        "to_config": _to_config,
    }
    return Family(name=name, **{**plain, **changes})


def _changed(**changes: Any) -> dict[str, Any]:
    return {**BASE, "encoder": {**BASE["encoder"], **changes}}


LLAMA: Final = _family("llama", "Llama")
MISTRAL: Final = _family(
    "mistral", "Mistral", to_model=_mistral_to_model, to_config=_mistral_to_config
)
QWEN2: Final = _family(
    "qwen2",
    "Qwen2",
    base=_changed(qkv_bias=True),
    expected=NO_WINDOW,
    to_model=_qwen_to_model,
)
QWEN3: Final = _family(
    "qwen3",
    "Qwen3",
    base=_changed(qk_norm=True),
    expected={**NO_WINDOW, "attention_bias": False},
    rules=HEAD_NORMS,
    to_model=_qwen_to_model,
)
