"""ModernBERT (Warner et al., 2024): rotary positions, alternating windows, fused layers."""

from __future__ import annotations

from typing import Any, Final

from tencentpretrain.convert.families.bert import mlm_head
from tencentpretrain.convert.family import Family, Plain, Specials
from tencentpretrain.convert.keys import ACTIVATIONS, Key, Settings
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import Fused
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors

OUTSIDE: Final = {
    "embedding.word": "model.embeddings.tok_embeddings",
    "embedding.norm": "model.embeddings.norm",
    "encoder.norm": "model.final_norm",
}
LAYER: Final = {
    "attention.output": "attn.Wo",
    "attention_norm": "attn_norm",
    "feed_forward.down": "mlp.Wo",
    "feed_forward_norm": "mlp_norm",
}
FULL, LOCAL = "full_attention", "sliding_attention"
LENGTH: Final = 8192


def _to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    encoder = data["encoder"]
    every = _global_every(settings, encoder["layers"])
    encoder["global_every"] = every
    encoder["window"] = settings.number("local_attention", 128) // 2
    rotary = settings.get("rope_parameters", {})
    theta: dict[str, Any] = {}
    for key, kind, old, default in (
        ("theta", FULL, "global_rope_theta", 160000.0),
        ("local_theta", LOCAL, "local_rope_theta", 10000.0),
    ):
        values = rotary.get(kind) or {}
        if values.get("rope_type", "default") != "default":
            raise CheckpointError("config.json: rotary positions must not be scaled here")
        older = settings.get(old, default)
        theta[key] = values.get("rope_theta") or older
    encoder["rotary"] = theta
    settings.get("max_position_embeddings", LENGTH)
    return ()


def _global_every(settings: Settings, layers: int) -> int:
    """How many layers there are for each that sees everything."""
    kinds = settings.get("layer_types", None)
    every = settings.get("global_attn_every_n_layers", None)
    if kinds is None:
        return settings.number("global_attn_every_n_layers", 3)
    if every is None:
        every = next((n for n in range(1, layers) if kinds[n] == FULL), layers)
    if kinds != [LOCAL if number % every else FULL for number in range(layers)]:
        raise CheckpointError(f"config.json: layer_types must repeat themselves, but is {kinds}")
    return int(every)


def _to_config(config: Plain, data: Plain, specials: Specials) -> None:
    encoder = data["encoder"]
    rotary, window, every = encoder["rotary"], encoder["window"], encoder["global_every"]
    if rotary is None or window is None or every is None:
        raise CheckpointError("it has no rotary positions, or no windows")
    config["local_attention"] = 2 * window
    config["global_attn_every_n_layers"] = every
    config["layer_types"] = [LOCAL if n % every else FULL for n in range(encoder["layers"])]
    config["global_rope_theta"] = rotary["theta"]
    config["local_rope_theta"] = rotary["local_theta"] or rotary["theta"]
    config["rope_parameters"] = {
        FULL: {"rope_type": "default", "rope_theta": config["global_rope_theta"]},
        LOCAL: {"rope_type": "default", "rope_theta": config["local_rope_theta"]},
    }
    config.setdefault("max_position_embeddings", LENGTH)
    # Its own defaults are ids of its own vocabulary.
    for role in ("bos", "eos", "cls", "sep"):
        config.setdefault(f"{role}_token_id", None)


MODERNBERT: Final = Family(
    name="modernbert",
    model_type="modernbert",
    base={
        "embedding": {"parts": {"word": {}}, "norm": "layer_gain"},
        "encoder": {
            "name": "transformer",
            "norm": "layer_gain",
            "norm_order": "pre",
            "first_norm": False,
            "gated": True,
            "bias": False,
            "mask": "full",
        },
        "init": {"scale_residual": True},
    },
    keys=(
        Key("hidden", "hidden_size"),
        Key("encoder.layers", "num_hidden_layers"),
        Key("encoder.heads", "num_attention_heads"),
        Key("encoder.ffn", "intermediate_size"),
        Key("encoder.activation", "hidden_activation", "gelu", ACTIVATIONS),
        Key("target.mlm.activation", "classifier_activation", "gelu", ACTIVATIONS),
        Key("encoder.norm_eps", "norm_eps", 1e-5),
        Key("embedding.norm_eps", "norm_eps", 1e-5),
        Key("target.mlm.norm_eps", "norm_eps", 1e-5),
        Key("embedding.dropout", "embedding_dropout", 0.0),
        Key("encoder.dropout", "mlp_dropout", 0.0),
        Key("encoder.attention_dropout", "attention_dropout", 0.0),
        Key("init.std", "initializer_range", 0.02),
    ),
    expected={
        "norm_bias": False,
        "mlp_bias": False,
        "attention_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
    },
    prefix="model.",
    table=Table(
        rules=(
            *modules(OUTSIDE),
            *modules(LAYER, "encoder.layers.{n}.", "model.layers.{n}."),
            Rule(
                tuple(
                    f"encoder.layers.{{n}}.attention.{part}.weight"
                    for part in ("query", "key", "value")
                ),
                ("model.layers.{n}.attn.Wqkv.weight",),
                Fused(3),
            ),
            Rule(
                tuple(
                    f"encoder.layers.{{n}}.feed_forward.{part}.weight" for part in ("gate", "up")
                ),
                ("model.layers.{n}.mlp.Wi.weight",),
                Fused(2),
            ),
        ),
        recomputed=(r"model\.(layers\.\d+\.attn\.)?rotary_emb\..*inv_freq",),
        spellings=((r"^(?=(embeddings|layers|final_norm)\.)", "model."),),
    ),
    heads=(
        mlm_head(
            "head.dense",
            "head.norm",
            "decoder.weight",
            "decoder.bias",
            config={"norm": "layer_gain", "bias": False},
            marks=("head.dense.weight", "decoder.bias"),
        ),
    ),
    architectures={"": "ModernBertModel", "mlm": "ModernBertForMaskedLM"},
    aside={r"(head|classifier)\..*": "there is no target of this kind"},
    to_model=_to_model,
    to_config=_to_config,
)
