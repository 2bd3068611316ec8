"""DistilBERT (Sanh et al., 2019): BERT without segments and pooler."""

from __future__ import annotations

from typing import Final

from tencentpretrain.convert.families.bert import mlm_head, span_head, tag_head
from tencentpretrain.convert.family import Family
from tencentpretrain.convert.keys import ACTIVATIONS, Key
from tencentpretrain.convert.table import Table, modules

LAYER: Final = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_forward.up": "ffn.lin1",
    "feed_forward.down": "ffn.lin2",
    "feed_forward_norm": "output_layer_norm",
}
EMBEDDING: Final = {
    "embedding.word": "word_embeddings",
    "embedding.position": "position_embeddings",
    "embedding.norm": "LayerNorm",
}
EPS: Final = 1e-12
"""Of all norms; config.json does not say it."""
DISTILBERT: Final = Family(
    name="distilbert",
    model_type="distilbert",
    base={
        "embedding": {"parts": {"word": {}, "position": {}}, "norm": "layer", "norm_eps": EPS},
        "encoder": {
            "name": "transformer",
            "norm": "layer",
            "norm_eps": EPS,
            "norm_order": "post",
            "mask": "full",
        },
    },
    keys=(
        Key("hidden", "dim", 768),
        Key("encoder.layers", "n_layers", 6),
        Key("encoder.heads", "n_heads", 12),
        Key("encoder.ffn", "hidden_dim", 3072),
        Key("encoder.activation", "activation", "gelu", ACTIVATIONS),
        Key("target.mlm.activation", "activation", "gelu", ACTIVATIONS),
        Key("encoder.dropout", "dropout", 0.1),
        Key("embedding.dropout", "dropout", 0.1),
        Key("encoder.attention_dropout", "attention_dropout", 0.1),
        Key("target.span.dropout", "qa_dropout", 0.1),
        Key("embedding.parts.position.length", "max_position_embeddings", 512),
        Key("init.std", "initializer_range", 0.02),
    ),
    prefix="distilbert.",
    table=Table(
        rules=(
            *modules(EMBEDDING, theirs="distilbert.embeddings."),
            *modules(LAYER, "encoder.layers.{n}.", "distilbert.transformer.layer.{n}."),
        ),
        recomputed=(r"distilbert\.embeddings\.position_ids",),
        spellings=((r"^(?=(embeddings|transformer)\.)", "distilbert."),),
    ),
    heads=(
        mlm_head(
            "vocab_transform", "vocab_layer_norm", "vocab_projector.weight", "vocab_projector.bias"
        ),
        tag_head(),
        span_head(),
    ),
    architectures={
        "": "DistilBertModel",
        "mlm": "DistilBertForMaskedLM",
        "tag": "DistilBertForTokenClassification",
        "span": "DistilBertForQuestionAnswering",
    },
    aside={
        r"(pre_)?classifier\..*": "its classifier has a ReLU, which no target has",
    },
)
