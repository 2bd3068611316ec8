"""ALBERT (Lan et al., 2020): one shared block and a narrow embedding."""

from __future__ import annotations

from typing import Final

from tencentpretrain.convert.families.bert import (
    ASIDE,
    BASE,
    EMBEDDING,
    EXPECTED,
    KEYS,
    architectures,
    mlm_head,
    row_head,
    span_head,
    tag_head,
)
from tencentpretrain.convert.family import Family, Filled
from tencentpretrain.convert.keys import ACTIVATIONS, Key
from tencentpretrain.convert.table import Table, modules

BLOCK: Final = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "feed_forward.up": "ffn",
    "feed_forward.down": "ffn_output",
    "feed_forward_norm": "full_layer_layer_norm",
}
ALBERT: Final = Family(
    name="albert",
    model_type="albert",
    base={**BASE, "encoder": {**BASE["encoder"], "share_blocks": True}},
    keys=(
        Key("embedding.size", "embedding_size", 128),
        Key("encoder.activation", "hidden_act", "gelu_new", ACTIVATIONS),
        Key("target.mlm.activation", "hidden_act", "gelu_new", ACTIVATIONS),
        Key("encoder.dropout", "hidden_dropout_prob", 0.0),
        Key("embedding.dropout", "hidden_dropout_prob", 0.0),
        Key("encoder.attention_dropout", "attention_probs_dropout_prob", 0.0),
        Key("target.classify.dropout", "classifier_dropout_prob", 0.1),
        *(key for key in KEYS if key.theirs != "hidden_act" and "dropout" not in key.theirs),
    ),
    expected={**EXPECTED, "num_hidden_groups": 1, "inner_group_num": 1},
    prefix="albert.",
    table=Table(
        rules=(
            *modules(EMBEDDING, theirs="albert.embeddings."),
            *modules({"embedding.projection": "albert.encoder.embedding_hidden_mapping_in"}),
            *modules(
                BLOCK,
                "encoder.layers.0.",
                "albert.encoder.albert_layer_groups.0.albert_layers.0.",
            ),
        ),
        recomputed=(r"albert\.embeddings\.(position|token_type)_ids",),
        spellings=((r"^(?=(embeddings|encoder|pooler)\.)", "albert."),),
        output_bias=("predictions.decoder.bias", "predictions.bias"),
    ),
    heads=(
        mlm_head(
            "predictions.dense",
            "predictions.LayerNorm",
            "predictions.decoder.weight",
            "predictions.bias",
        ),
        row_head("sop", "albert.pooler", "sop_classifier.classifier"),
        row_head("classify", "albert.pooler", "classifier"),
        tag_head(),
        span_head(),
    ),
    architectures=architectures("Albert", ("mlm sop", "AlbertForPreTraining")),
    aside=ASIDE,
    filled=(
        Filled("albert.pooler.weight", ("hidden_size", "hidden_size"), target=""),
        Filled("albert.pooler.bias", ("hidden_size",), target=""),
    ),
)
