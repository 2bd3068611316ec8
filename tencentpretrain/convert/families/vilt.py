"""ViLT (Kim et al., 2021): words and patches in one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tencentpretrain.convert.families.bert import row_head
from tencentpretrain.convert.families.vit import LAYER, VECTOR
from tencentpretrain.convert.family import Family, Filled, Head, LeftOut
from tencentpretrain.convert.image_preparation import (
    Usual,
    image_preparation,
    usual_preparation,
)
from tencentpretrain.convert.keys import ACTIVATIONS, Key, Settings
from tencentpretrain.convert.preparation import Preparation
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import Squeezed

INNER: Final = "embedding.concat.embeddings."
DATA: Final = "embedding.parts.concat.embeddings."
WORDS: Final = {
    "text.word": "text_embeddings.word_embeddings",
    "text.position": "text_embeddings.position_embeddings",
    "text.segment": "text_embeddings.token_type_embeddings",
    "text.norm": "text_embeddings.LayerNorm",
    "image.patch": "patch_embeddings.projection",
}
MASKED: Final = {
    "target.mlm.dense": "mlm_score.transform.dense",
    "target.mlm.norm": "mlm_score.transform.LayerNorm",
    "target.mlm.output": "mlm_score.decoder",
}
SQUARE: Final = image_preparation(Usual("ViltImageProcessor", resampling=3, size=384))


def _to_ours(settings: Settings) -> dict[str, Any]:
    """Theirs keep the shape of an image and fill up; of square ones that is the same."""
    size, values = settings.get("size", 384), dict(settings.values)
    edge = size.get("shortest_edge", 384) if isinstance(size, Mapping) else size
    values |= {"size": {"height": edge, "width": edge}, "do_center_crop": False}
    return SQUARE.to_ours(Settings(values))


def _to_theirs(told: Mapping[str, Any]) -> dict[str, Any]:
    content = SQUARE.to_theirs(told)
    if not content:
        return content
    edge = told["transform"]["size"]
    return content | {"size": {"shortest_edge": edge}, "size_divisor": edge, "do_pad": True}


PREPARATION: Final = Preparation(_to_ours, _to_theirs)


def _objective(settings: Settings) -> dict[str, Any]:
    return {
        "length": settings.number("max_position_embeddings", 40),
        **usual_preparation(PREPARATION, settings.number("image_size", 384)),
    }


VILT: Final = Family(
    name="vilt",
    model_type="vilt",
    base={
        "embedding": {
            "parts": {
                "concat": {
                    "embeddings": {
                        "text": {
                            "parts": {"word": {}, "position": {}, "segment": {}},
                            "norm": "layer",
                        },
                        "image": {"parts": {"patch": {}, "patch_position": {}}, "norm": "none"},
                    }
                }
            },
            "norm": "none",
            "dropout": 0.0,
        },
        "encoder": {"name": "transformer", "norm": "layer", "norm_order": "pre", "mask": "full"},
    },
    keys=(
        Key("hidden", "hidden_size", 768),
        Key("encoder.layers", "num_hidden_layers", 12),
        Key("encoder.heads", "num_attention_heads", 12),
        Key("encoder.ffn", "intermediate_size", 3072),
        Key("encoder.activation", "hidden_act", "gelu", ACTIVATIONS),
        Key("encoder.norm_eps", "layer_norm_eps", 1e-12),
        Key("encoder.dropout", "hidden_dropout_prob", 0.0),
        Key("encoder.attention_dropout", "attention_probs_dropout_prob", 0.0),
        Key("encoder.qkv_bias", "qkv_bias", True),
        Key("target.mlm.norm_eps", "layer_norm_eps", 1e-12),
        Key("target.mlm.activation", "hidden_act", "gelu", ACTIVATIONS),
        Key(f"{DATA}text.norm_eps", "layer_norm_eps", 1e-12),
        Key(f"{DATA}text.dropout", "hidden_dropout_prob", 0.0),
        Key(f"{DATA}text.parts.position.length", "max_position_embeddings", 40),
        Key(f"{DATA}text.parts.segment.types", "type_vocab_size", 2),
        Key(f"{DATA}image.dropout", "hidden_dropout_prob", 0.0),
        Key(f"{DATA}image.parts.patch.image_size", "image_size", 384),
        Key(f"{DATA}image.parts.patch.patch_size", "patch_size", 32),
        Key(f"{DATA}image.parts.patch.channels", "num_channels", 3),
        Key("init.std", "initializer_range", 0.02),
    ),
    expected={"modality_type_vocab_size": 2, "max_image_length": -1},
    prefix="vilt.",
    words=f"{INNER}text.word.weight",
    table=Table(
        rules=(
            *modules(WORDS, INNER, "vilt.embeddings."),
            Rule((f"{INNER}image.patch.class_token",), ("vilt.embeddings.cls_token",), VECTOR),
            Rule(
                (f"{INNER}image.patch_position.weight",),
                ("vilt.embeddings.position_embeddings",),
                Squeezed(),
            ),
            Rule(("embedding.concat.kinds",), ("vilt.embeddings.token_type_embeddings.weight",)),
            *modules(LAYER, "encoder.layers.{n}.", "vilt.encoder.layer.{n}."),
            *modules({"encoder.norm": "vilt.layernorm"}),
        ),
        recomputed=(r"vilt\.embeddings\.text_embeddings\.position_ids",),
        spellings=((r"^(?=(embeddings|encoder|layernorm|pooler)\.)", "vilt."),),
        copies={"mlm_score.bias": "mlm_score.decoder.bias"},
    ),
    heads=(
        Head("mlm", modules(MASKED), ("mlm_score.transform.dense.weight",)),
        row_head("match", "vilt.pooler.dense", "rank_output", name="classify", classes=1),
    ),
    architectures={
        "": "ViltModel",
        "mlm": "ViltForMaskedLM",
        "match": "ViltForImageAndTextRetrieval",
    },
    objectives={"": "vilt", "mlm": "vilt", "match": "vilt"},
    objective_keys=_objective,
    preparation=PREPARATION,
    aside={
        r"vilt\.pooler\.dense\.(weight|bias)": "no target reads the pooler",
        r"classifier\..*": "there is no target of this kind",
    },
    # Theirs score a pair by one number, in a class without masked words.
    left_out=(
        LeftOut(
            "match",
            lambda targets: "mlm" in targets or targets["match"].classes > 1,
            "vilt.pooler.dense",
        ),
    ),
    filled=(
        Filled("vilt.pooler.dense.weight", ("hidden_size", "hidden_size")),
        Filled("vilt.pooler.dense.bias", ("hidden_size",)),
    ),
)
