"""CLIP (Radford et al., 2021), the class CLIPModel: both towers and what compares them."""

from __future__ import annotations

import math
from typing import Any, Final

from tencentpretrain.convert.family import Family, Head, Plain, Specials, never_tied
from tencentpretrain.convert.image_preparation import (
    Usual,
    image_preparation,
    usual_preparation,
)
from tencentpretrain.convert.keys import ACTIVATIONS, Key, Settings
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.errors import CheckpointError
from tencentpretrain.targets.contrast import MAX_SCALE
from tencentpretrain.train.tensor_file import LazyTensors

LAYER: Final = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "feed_forward.up": "mlp.fc1",
    "feed_forward.down": "mlp.fc2",
    "feed_forward_norm": "layer_norm2",
}
TEXT: Final = {
    "embedding.word": "text_model.embeddings.token_embedding",
    "embedding.position": "text_model.embeddings.position_embedding",
    "encoder.norm": "text_model.final_layer_norm",
}
IMAGE: Final = {
    "embedding.patch": "vision_model.embeddings.patch_embedding",
    "embedding.patch_position": "vision_model.embeddings.position_embedding",
    "embedding.norm": "vision_model.pre_layrnorm",
    "encoder.norm": "vision_model.post_layernorm",
}
PREPARATION: Final = image_preparation(
    Usual(
        "CLIPImageProcessor",
        resampling=3,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        cuts=True,
    )
)
OLD_END: Final = 2
"""With this number as that of the end token, theirs takes the greatest id of a row for its end."""


def _stack_keys(ours: str, theirs: str, hidden: int, heads: int, ffn: int) -> tuple[Key, ...]:
    """Keys of one tower, with the defaults of their config."""
    return (
        Key(f"{ours}encoder.layers", f"{theirs}.num_hidden_layers", 12),
        Key(f"{ours}encoder.heads", f"{theirs}.num_attention_heads", heads),
        Key(f"{ours}encoder.ffn", f"{theirs}.intermediate_size", ffn),
        Key(f"{ours}encoder.activation", f"{theirs}.hidden_act", "quick_gelu", ACTIVATIONS),
        Key(f"{ours}encoder.norm_eps", f"{theirs}.layer_norm_eps", 1e-5),
        Key(f"{ours}encoder.attention_dropout", f"{theirs}.attention_dropout", 0.0),
        Key(f"{ours}hidden", f"{theirs}.hidden_size", hidden),
    )


def _encoder(mask: str) -> Plain:
    return {
        "name": "transformer",
        "norm": "layer",
        "norm_order": "pre",
        "mask": mask,
        "dropout": 0.0,
    }


def _to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    if "contrast" not in data["target"]:
        raise CheckpointError(
            "the files hold no `logit_scale`, so they are one tower alone; only whole models of "
            "the class CLIPModel can be converted"
        )
    # Where training began is of no matter any more: the files hold what it has come to.
    began = math.exp(-settings.get("logit_scale_init_value", 2.6592))
    data["target"]["contrast"]["temperature"] = max(began, 1 / MAX_SCALE)
    return ()


def _to_config(config: Plain, data: Plain, specials: Specials) -> None:
    if "contrast" not in data["target"]:
        return
    config["logit_scale_init_value"] = -math.log(data["target"]["contrast"]["temperature"])
    if not specials:
        return
    has_frame = specials.get("cls") is not None
    ids = {
        "bos": specials.get("cls" if has_frame else "bos"),
        "eos": specials.get("sep" if has_frame else "eos"),
        "pad": specials.get("pad"),
    }
    if ids["eos"] == OLD_END:
        raise CheckpointError(
            f"the token that ends texts has the number {OLD_END}, which transformers takes for the "
            "sign of an old vocabulary; use a tokenizer in which it has another"
        )
    for role, number in ids.items():
        config[f"text_config.{role}_token_id"] = number


def _objective(settings: Settings) -> dict[str, Any]:
    return {
        "length": settings.number("text_config.max_position_embeddings", 77),
        **usual_preparation(PREPARATION, settings.number("vision_config.image_size", 224)),
    }


CLIP: Final = Family(
    name="clip",
    model_type="clip",
    base={
        "embedding": {"parts": {"word": {}, "position": {}}, "norm": "none", "dropout": 0.0},
        "encoder": _encoder("causal"),
        "towers": {
            "image": {
                "embedding": {
                    "parts": {"patch": {"bias": False}, "patch_position": {}},
                    "norm": "layer",
                    "dropout": 0.0,
                },
                "encoder": _encoder("full"),
            }
        },
    },
    keys=(
        *_stack_keys("", "text_config", 512, 8, 2048),
        *_stack_keys("towers.image.", "vision_config", 768, 12, 3072),
        Key("embedding.parts.position.length", "text_config.max_position_embeddings", 77),
        Key("towers.image.embedding.parts.patch.image_size", "vision_config.image_size", 224),
        Key("towers.image.embedding.parts.patch.patch_size", "vision_config.patch_size", 32),
        Key("towers.image.embedding.parts.patch.channels", "vision_config.num_channels", 3),
        Key("towers.image.embedding.norm_eps", "vision_config.layer_norm_eps", 1e-5),
        Key("target.contrast.size", "text_config.projection_dim", 512),
        Key("target.contrast.size", "vision_config.projection_dim", 512),
        Key("target.contrast.size", "projection_dim", 512),
    ),
    table=Table(
        rules=(
            *modules(TEXT),
            *modules(LAYER, "encoder.layers.{n}.", "text_model.encoder.layers.{n}."),
            *modules(IMAGE, "towers.image."),
            Rule(
                ("towers.image.embedding.patch.class_token",),
                ("vision_model.embeddings.class_embedding",),
            ),
            *modules(LAYER, "towers.image.encoder.layers.{n}.", "vision_model.encoder.layers.{n}."),
        ),
        recomputed=(r"(text|vision)_model\.embeddings\.position_ids",),
    ),
    heads=(
        Head(
            "contrast",
            (
                *modules(
                    {
                        "target.contrast.projections.0": "text_projection",
                        "target.contrast.projections.1": "visual_projection",
                    }
                ),
                Rule(("target.contrast.log_scale",), ("logit_scale",)),
            ),
            ("logit_scale",),
            {"streams": ("text", "image"), "pooling": "last", "other_pooling": "first"},
        ),
    ),
    architectures={"contrast": "CLIPModel"},
    objectives={"contrast": "clip"},
    objective_keys=_objective,
    preparation=PREPARATION,
    sections=("text_config", "vision_config"),
    aliases={"text_config.vocab_size": "vocab_size"},
    is_tied=never_tied,
    to_model=_to_model,
    to_config=_to_config,
)
