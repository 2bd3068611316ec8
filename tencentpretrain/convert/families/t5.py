"""T5 and T5 v1.1 (Raffel et al., 2020)."""

from __future__ import annotations

from typing import Any, Final

from tencentpretrain.convert.family import Family, Head, Plain, Specials, add_decoder
from tencentpretrain.convert.keys import ACTIVATIONS, Key, Settings
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors

ATTENTION: Final = {"query": "q", "key": "k", "value": "v", "output": "o"}
DENSE, GATED = ("is_gated", 0), ("is_gated", 1)


def _layer(side: str, feed_forward: int) -> tuple[Rule, ...]:
    """Rules of one block; `feed_forward` is the number of its part with that name."""
    ours, theirs = f"{side}.layers.{{n}}.", f"{side}.block.{{n}}.layer."
    last = f"{theirs}{feed_forward}.DenseReluDense."
    names = {
        **{f"attention.{name}": f"0.SelfAttention.{other}" for name, other in ATTENTION.items()},
        "attention_norm": "0.layer_norm",
        "feed_forward_norm": f"{feed_forward}.layer_norm",
        "feed_forward.down": f"{feed_forward}.DenseReluDense.wo",
    }
    return (
        *modules(names, ours, theirs),
        *modules({"up": "wi"}, f"{ours}feed_forward.", last, only=DENSE),
        *modules({"gate": "wi_0", "up": "wi_1"}, f"{ours}feed_forward.", last, only=GATED),
        *modules(
            {
                f"{side}.relative": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias",
                f"{side}.norm": f"{side}.final_layer_norm",
            }
        ),
    )


CROSS: Final = {
    **{f"cross.{name}": f"EncDecAttention.{other}" for name, other in ATTENTION.items()},
    "cross_norm": "layer_norm",
}
STACK: Final[dict[str, Any]] = {
    "name": "transformer",
    "norm": "t5",
    "norm_order": "pre",
    "bias": False,
    "scale_scores": False,
    "relative": {},
}
EMBEDDING: Final[dict[str, Any]] = {"parts": {"word": {}}, "norm": "none"}


def _is_unscaled(settings: Settings) -> bool:
    """Whether the output layer reads states as they are; version 5 has a key for it."""
    scaled = settings.get("scale_decoder_outputs", settings.get("tie_word_embeddings", True))
    return not scaled


def _is_tied(settings: Settings, tensors: LazyTensors) -> bool:
    # Version 5 says that all of them are tied; then the file of an untied model tells.
    says_so = settings.get("tie_word_embeddings", True) and not _is_unscaled(settings)
    return says_so or "lm_head.weight" not in tensors.described


def _to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    kind = settings.get("feed_forward_proj", "relu")
    gate, _, name = str(kind).rpartition("-")
    if gate not in ("", "gated") or name not in ACTIVATIONS:
        raise CheckpointError(f"config.json: there is no feed_forward_proj `{kind}` here")
    # Their own exception: the first models of the kind were written so.
    activation = "gelu_tanh" if kind == "gated-gelu" else ACTIVATIONS[name]
    for stack in (data["encoder"], data["decoder"]):
        stack |= {"gated": bool(gate), "activation": activation}
    if data["decoder"]["layers"] is None:
        data["decoder"]["layers"] = data["encoder"]["layers"]
    if "lm" in data["target"]:
        data["target"]["lm"]["scale_states"] = not _is_unscaled(settings)
    for name in ("dense_act_fn", "is_gated_act", "initializer_factor"):
        settings.get(name, None)
    return ()


def _to_config(config: Plain, data: Plain, specials: Specials) -> None:
    encoder = data["encoder"]
    name = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == encoder["activation"])
    if encoder["gated"]:
        name = "gated-gelu" if encoder["activation"] == "gelu_tanh" else f"gated-{name}"
    config["feed_forward_proj"] = name
    if "lm" in data["target"]:
        config["scale_decoder_outputs"] = data["target"]["lm"]["scale_states"]
    add_decoder(config, data, specials, "pad")


T5: Final = Family(
    name="t5",
    model_type="t5",
    base={
        "embedding": EMBEDDING,
        "encoder": {**STACK, "mask": "full"},
        "target_embedding": EMBEDDING,
        "decoder": {**STACK, "mask": "causal"},
        "ties": {"target_embedding.word.weight": "embedding.word.weight"},
        "init": {"std": 1.0, "fan_in": True},
    },
    keys=(
        Key("hidden", "d_model"),
        Key("encoder.layers", "num_layers"),
        Key("decoder.layers", "num_decoder_layers", None),
        *(
            Key(f"{side}.{ours}", theirs, default)
            for side in ("encoder", "decoder")
            for ours, theirs, default in (
                ("heads", "num_heads", 8),
                ("head_size", "d_kv", 64),
                ("ffn", "d_ff", 2048),
                ("norm_eps", "layer_norm_epsilon", 1e-6),
                ("dropout", "dropout_rate", 0.1),
                ("relative.buckets", "relative_attention_num_buckets", 32),
                ("relative.distance", "relative_attention_max_distance", 128),
            )
        ),
        Key("embedding.dropout", "dropout_rate", 0.1),
        Key("target_embedding.dropout", "dropout_rate", 0.1),
    ),
    expected={"is_decoder": False},
    table=Table(
        rules=(
            *modules({"embedding.word": "shared"}),
            *_layer("encoder", 1),
            *_layer("decoder", 2),
            *modules(CROSS, "decoder.layers.{n}.", "decoder.block.{n}.layer.1."),
        ),
        copies={
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
        },
    ),
    heads=(Head("lm", (Rule(("target.lm.output.weight",), ("lm_head.weight",)),)),),
    architectures={"": "T5Model", "lm": "T5ForConditionalGeneration"},
    aside={
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": (
            "no layer has ever read it"
        )
    },
    objective="t5",
    is_tied=_is_tied,
    to_model=_to_model,
    to_config=_to_config,
)
