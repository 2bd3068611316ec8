"""BART (Lewis et al., 2020) and PEGASUS (Zhang et al., 2020): one naming scheme, two models.

BART's table of positions begins with two rows that no token reads; PEGASUS' is computed. The bias
of their outputs is zero in the published models, which then have none here.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from tencentpretrain.convert.family import Family, Filled, Head, Plain, Specials, add_decoder
from tencentpretrain.convert.keys import ACTIVATIONS, Key, Settings
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import SQUEEZED, SkippedRows
from tencentpretrain.train.tensor_file import LazyTensors

PROJECTIONS: Final = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
BIAS: Final = "final_logits_bias"
SIDES: Final = (("encoder", "embedding"), ("decoder", "target_embedding"))
UNREAD_ROWS: Final = 2
EPS: Final = 1e-5
"""Of all norms; config.json does not say it."""


def block_rules() -> tuple[Rule, ...]:
    """Rules of the blocks of both sides."""
    block = {
        **{f"attention.{ours}": f"self_attn.{theirs}" for ours, theirs in PROJECTIONS.items()},
        "attention_norm": "self_attn_layer_norm",
        "feed_forward.up": "fc1",
        "feed_forward.down": "fc2",
        "feed_forward_norm": "final_layer_norm",
    }
    cross = {
        **{f"cross.{ours}": f"encoder_attn.{theirs}" for ours, theirs in PROJECTIONS.items()},
        "cross_norm": "encoder_attn_layer_norm",
    }
    return (
        *(
            rule
            for side, _ in SIDES
            for rule in modules(block, f"{side}.layers.{{n}}.", f"model.{side}.layers.{{n}}.")
        ),
        *modules(cross, "decoder.layers.{n}.", "model.decoder.layers.{n}."),
    )


def _keys(activation: str) -> tuple[Key, ...]:
    return (
        Key("hidden", "d_model"),
        *(
            key
            for side, embedding in SIDES
            for key in (
                Key(f"{side}.layers", f"{side}_layers", 12),
                Key(f"{side}.heads", f"{side}_attention_heads", 16),
                Key(f"{side}.ffn", f"{side}_ffn_dim", 4096),
                Key(f"{side}.activation", "activation_function", activation, ACTIVATIONS),
                Key(f"{side}.dropout", "dropout", 0.1),
                Key(f"{side}.attention_dropout", "attention_dropout", 0.0),
                Key(f"{embedding}.dropout", "dropout", 0.1),
                Key(f"{embedding}.parts.position.length", "max_position_embeddings", 1024),
                Key(f"{embedding}.parts.word.scale", "scale_embedding", False),
            )
        ),
        Key("init.std", "init_std", 0.02),
    )


def _to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    for name in ("activation_dropout", "max_position_embeddings", "num_hidden_layers"):
        settings.get(name, None)
    if "lm" not in data["target"]:
        return ()
    has_bias = BIAS in tensors.described and bool(tensors[BIAS].any())
    data["target"]["lm"]["bias"] = has_bias
    return () if has_bias or BIAS not in tensors.described else (BIAS,)


def _bart_to_config(config: Plain, data: Plain, specials: Specials) -> None:
    add_decoder(config, data, specials, "eos")


def _pegasus_to_config(config: Plain, data: Plain, specials: Specials) -> None:
    add_decoder(config, data, specials, "pad")


def waves(table: Tensor) -> Tensor:
    """Sines of all positions [S, D/2] beside their cosines, in the place of `table` [S, D]."""
    length, width = table.shape
    positions = torch.arange(length, dtype=torch.float64)[:, None]
    angles = positions / 10000 ** (2 * torch.arange(width // 2, dtype=torch.float64) / width)
    return torch.cat([angles.sin(), angles.cos()], -1).to(table.dtype)


def _base(parts: Plain, norm: str, order: str) -> Plain:
    embedding = {"parts": parts, "norm": norm, "norm_eps": EPS}
    stack = {"name": "transformer", "norm": "layer", "norm_eps": EPS, "norm_order": order}
    return {
        "embedding": embedding,
        "encoder": {**stack, "mask": "full"},
        "target_embedding": embedding,
        "decoder": {**stack, "mask": "causal"},
        "ties": {"target_embedding.word.weight": "embedding.word.weight"},
    }


def _family(name: str, stem: str, rules: tuple[Rule, ...], **others: Any) -> Family:
    recomputed = others.pop("recomputed", ())
    filled = others.pop("filled", ())
    return Family(
        name=name,
        model_type=name,
        objective=name,
        prefix="model.",
        table=Table(
            rules=(*modules({"embedding.word": "model.shared"}), *block_rules(), *rules),
            recomputed=(r"model\.(encoder|decoder)\.version", *recomputed),
            spellings=((r"^(?=(shared|encoder|decoder)\.)", "model."),),
            copies={
                "model.encoder.embed_tokens.weight": "model.shared.weight",
                "model.decoder.embed_tokens.weight": "model.shared.weight",
            },
        ),
        heads=(
            Head(
                "lm",
                (
                    Rule(("target.lm.output.weight",), ("lm_head.weight",)),
                    Rule(("target.lm.output.bias",), (BIAS,), SQUEEZED),
                ),
            ),
        ),
        architectures={"": f"{stem}Model", "lm": f"{stem}ForConditionalGeneration"},
        filled=(*filled, Filled(BIAS, (1, "vocab_size"), target="lm")),
        to_model=_to_model,
        **others,
    )


BART: Final = _family(
    "bart",
    "Bart",
    tuple(
        rule
        for side, embedding in SIDES
        for rule in (
            *modules({f"{embedding}.norm": f"model.{side}.layernorm_embedding"}),
            Rule(
                (f"{embedding}.position.weight",),
                (f"model.{side}.embed_positions.weight",),
                SkippedRows("unread_rows"),
            ),
        )
    ),
    base=_base({"word": {}, "position": {}}, "layer", "post"),
    keys=_keys("gelu"),
    expected={
        "is_decoder": False,
        "normalize_before": False,
        "add_final_layer_norm": False,
        "normalize_embedding": True,
        "static_position_embeddings": False,
    },
    aside={r"classification_head\..*|qa_outputs\..*": "there is no target of this kind"},
    numbers=lambda settings: {"unread_rows": UNREAD_ROWS},
    to_config=_bart_to_config,
)
PEGASUS: Final = _family(
    "pegasus",
    "Pegasus",
    tuple(
        rule for side, _ in SIDES for rule in modules({f"{side}.norm": f"model.{side}.layer_norm"})
    ),
    base=_base({"word": {}, "sinusoidal": {"layout": "halves"}}, "none", "pre"),
    keys=_keys("gelu"),
    expected={
        "is_decoder": False,
        "normalize_before": True,
        "add_final_layer_norm": True,
        "normalize_embedding": False,
        "static_position_embeddings": True,
    },
    recomputed=(r"model\.(encoder|decoder)\.embed_positions\.weight",),
    filled=tuple(
        Filled(
            f"model.{side}.embed_positions.weight",
            ("max_position_embeddings", "d_model"),
            fill=waves,
        )
        for side, _ in SIDES
    ),
    to_config=_pegasus_to_config,
)
