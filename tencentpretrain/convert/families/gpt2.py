"""GPT-2 (Radford et al., 2019): fused and transposed linear layers."""

from __future__ import annotations

from typing import Final

from tencentpretrain.convert.family import Family, Head
from tencentpretrain.convert.keys import ACTIVATIONS, Key
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import TRANSPOSED, Fused

LAYER: Final = {
    "attention.output": "attn.c_proj",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
NORMS: Final = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}
OUTSIDE: Final = {
    "embedding.word": "transformer.wte",
    "embedding.position": "transformer.wpe",
    "encoder.norm": "transformer.ln_f",
}
GPT2: Final = Family(
    name="gpt2",
    model_type="gpt2",
    base={
        "embedding": {"parts": {"word": {}, "position": {}}, "norm": "none"},
        "encoder": {"name": "transformer", "norm": "layer", "norm_order": "pre", "mask": "causal"},
        "init": {"scale_residual": True},
    },
    keys=(
        Key("hidden", "n_embd"),
        Key("encoder.layers", "n_layer"),
        Key("encoder.heads", "n_head"),
        Key("encoder.ffn", "n_inner", None),
        Key("encoder.activation", "activation_function", "gelu_new", ACTIVATIONS),
        Key("encoder.norm_eps", "layer_norm_epsilon", 1e-5),
        Key("encoder.dropout", "resid_pdrop", 0.1),
        Key("embedding.dropout", "embd_pdrop", 0.1),
        Key("encoder.attention_dropout", "attn_pdrop", 0.1),
        Key("embedding.parts.position.length", "n_positions", 1024),
        Key("init.std", "initializer_range", 0.02),
    ),
    expected={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    prefix="transformer.",
    table=Table(
        rules=(
            *modules(OUTSIDE),
            *modules(NORMS, "encoder.layers.{n}.", "transformer.h.{n}."),
            *modules(LAYER, "encoder.layers.{n}.", "transformer.h.{n}.", TRANSPOSED),
            Rule(
                tuple(
                    f"encoder.layers.{{n}}.attention.{part}.{{p}}"
                    for part in ("query", "key", "value")
                ),
                ("transformer.h.{n}.attn.c_attn.{p}",),
                Fused(3, is_transposed=True),
            ),
        ),
        recomputed=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
        spellings=((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),),
    ),
    heads=(Head("lm", (Rule(("target.lm.output.weight",), ("lm_head.weight",)),)),),
    architectures={"": "GPT2Model", "lm": "GPT2LMHeadModel"},
    aside={r"(score|multiple_choice_head)\..*": "there is no target of this kind"},
)
