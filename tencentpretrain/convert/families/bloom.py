"""BLOOM (Le Scao et al., 2022): ALiBi, a norm after the embedding, interleaved attention."""

from __future__ import annotations

from typing import Final

from tencentpretrain.convert.family import Family, Head
from tencentpretrain.convert.keys import Key
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import Interleaved

OUTSIDE: Final = {
    "embedding.word": "transformer.word_embeddings",
    "embedding.norm": "transformer.word_embeddings_layernorm",
    "encoder.norm": "transformer.ln_f",
}
LAYER: Final = {
    "attention.output": "self_attention.dense",
    "attention_norm": "input_layernorm",
    "feed_forward.up": "mlp.dense_h_to_4h",
    "feed_forward.down": "mlp.dense_4h_to_h",
    "feed_forward_norm": "post_attention_layernorm",
}
BLOOM: Final = Family(
    name="bloom",
    model_type="bloom",
    base={
        "embedding": {"parts": {"word": {}}, "norm": "layer", "dropout": 0.0},
        "encoder": {
            "name": "transformer",
            "norm": "layer",
            "norm_order": "pre",
            "activation": "gelu_tanh",
            "alibi": True,
            "mask": "causal",
        },
        "init": {"scale_residual": True},
    },
    keys=(
        Key("hidden", "hidden_size"),
        Key("encoder.layers", "n_layer"),
        Key("encoder.heads", "n_head"),
        Key("encoder.norm_eps", "layer_norm_epsilon", 1e-5),
        Key("embedding.norm_eps", "layer_norm_epsilon", 1e-5),
        Key("encoder.dropout", "hidden_dropout", 0.0),
        Key("encoder.attention_dropout", "attention_dropout", 0.0),
        Key("init.std", "initializer_range", 0.02),
    ),
    aliases={
        "n_embed": "hidden_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    },
    expected={"apply_residual_connection_post_layernorm": False, "n_inner": None},
    prefix="transformer.",
    table=Table(
        rules=(
            *modules(OUTSIDE),
            *modules(LAYER, "encoder.layers.{n}.", "transformer.h.{n}."),
            Rule(
                tuple(
                    f"encoder.layers.{{n}}.attention.{part}.{{p}}"
                    for part in ("query", "key", "value")
                ),
                ("transformer.h.{n}.self_attention.query_key_value.{p}",),
                Interleaved(3),
            ),
        ),
        spellings=((r"^(?=(word_embeddings|word_embeddings_layernorm|h|ln_f)\.)", "transformer."),),
    ),
    heads=(Head("lm", (Rule(("target.lm.output.weight",), ("lm_head.weight",)),)),),
    architectures={"": "BloomModel", "lm": "BloomForCausalLM"},
    aside={r"score\..*": "there is no target of this kind"},
)
