"""Random files of the original: names and shapes of every tensor that a config means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.original import CELLS

Shapes = Iterator[tuple[str, tuple[int, ...]]]
VOCABULARY, TARGET_VOCABULARY, HIDDEN, FFN = 60, 45, 16, 32
TRANSFORMER: dict[str, Any] = {
    "emb_size": HIDDEN,
    "hidden_size": HIDDEN,
    "feedforward_size": FFN,
    "heads_num": 4,
    "layers_num": 3,
    "max_seq_length": 20,
    "dropout": 0.1,
    "hidden_act": "gelu",
    "encoder": "transformer",
    "mask": "fully_visible",
    "embedding": ["word", "pos", "seg"],
}
BERT = TRANSFORMER | {"target": ["mlm", "sp"], "tie_weights": True, "data_processor": "bert"}
GPT2 = TRANSFORMER | {
    "embedding": ["word", "pos"],
    "remove_embedding_layernorm": True,
    "mask": "causal",
    "layernorm_positioning": "pre",
    "hidden_act": "gelu_fast",
    "target": ["lm"],
    "tie_weights": True,
}
LLAMA = GPT2 | {
    "embedding": ["word"],
    "layernorm": "rms",
    "hidden_act": "silu",
    "feed_forward": "gated",
    "remove_transformer_bias": True,
    "rotary_position_embedding": True,
    "local_kv_heads_num": 2,
    "tie_weights": False,
}
T5 = TRANSFORMER | {
    "embedding": ["word"],
    "tgt_embedding": ["word"],
    "share_embedding": True,
    "decoder": "transformer",
    "decoder_layers_num": 2,
    "remove_embedding_layernorm": True,
    "layernorm_positioning": "pre",
    "layernorm": "t5",
    "hidden_act": "relu",
    "remove_transformer_bias": True,
    "remove_attention_scale": True,
    "relative_position_embedding": True,
    "attention_head_size": 6,
    "target": ["lm"],
    "tie_weights": True,
    "data_processor": "t5",
}
BART = TRANSFORMER | {
    "embedding": ["word", "pos"],
    "tgt_embedding": ["word", "pos"],
    "share_embedding": True,
    "decoder": "transformer",
    "decoder_layers_num": 2,
    "target": ["lm"],
    "has_lmtarget_bias": True,
    "tie_weights": True,
    "data_processor": "bart",
}
WAVES = {"embedding": ["word", "sinusoidalpos"], "tgt_embedding": ["word", "sinusoidalpos"]}
SEQUENCE: dict[str, Any] = {
    "emb_size": HIDDEN,
    "hidden_size": HIDDEN,
    "layers_num": 2,
    "dropout": 0.1,
    "embedding": ["word"],
    "remove_embedding_layernorm": True,
    "target": ["lm"],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "mlm untied": BERT | {"target": ["mlm"], "tie_weights": False},
    "albert": BERT
    | {
        "emb_size": 8,
        "factorized_embedding_parameterization": True,
        "parameter_sharing": True,
        "hidden_act": "relu",
        "tie_weights": False,
        "data_processor": "albert",
    },
    "realformer": BERT | {"has_residual_attention": True},
    "gpt2": GPT2,
    "prefix": GPT2 | {"mask": "causal_with_prefix"},
    "llama": LLAMA,
    "t5": T5,
    "t5_v1_1": T5 | {"hidden_act": "gelu_fast", "feed_forward": "gated", "tie_weights": False},
    "bart": BART,
    "pegasus": BART
    | WAVES
    | {
        "remove_embedding_layernorm": True,
        "layernorm_positioning": "pre",
        "hidden_act": "relu",
        "data_processor": "gsg",
    },
    "transformer": BART
    | WAVES
    | {
        "share_embedding": False,
        "hidden_act": "relu",
        "has_lmtarget_bias": False,
        "data_processor": "mt",
    },
    "rnn": SEQUENCE | {"encoder": "rnn"},
    "lstm": SEQUENCE | {"encoder": "lstm"},
    "gru both ways": SEQUENCE | {"encoder": "gru", "bidirectional": True},
    "elmo": SEQUENCE | {"encoder": "bilstm", "hidden_size": 24, "target": ["bilm"]},
    "gatedcnn": SEQUENCE
    | {
        "encoder": "gatedcnn",
        "kernel_size": 3,
        "block_size": 2,
        "layers_num": 5,
        "hidden_size": 24,
    },
}


def random_state(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Weights of a model; tied ones under both of their names, as the original saves them."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator) * 0.3 + (0.7 if "gamma" in name else 0.0)
        for name, shape in shapes(config)
    }
    state.setdefault("embedding.seg.embedding.weight", torch.zeros(0))
    if state["embedding.seg.embedding.weight"].numel() == 0:
        del state["embedding.seg.embedding.weight"]
    word, written = "embedding.word.embedding.weight", "tgt_embedding.word.embedding.weight"
    if config.get("share_embedding"):
        state[written] = state[word]
    if config.get("tie_weights"):
        for name in ("target.mlm.linear_2.weight", "target.lm.output_layer.weight"):
            if name in state:
                state[name] = state[written if written in state else word]
    if config.get("relative_position_embedding"):
        name = "relative_pos_emb.relative_attention_bias.weight"
        for number in range(1, config["layers_num"]):
            state[f"encoder.transformer.{number}.{name}"] = state[f"encoder.transformer.0.{name}"]
    return state


def shapes(config: dict[str, Any]) -> Shapes:
    yield from embedding_shapes(config, "embedding", VOCABULARY)
    hidden, embedded = config["hidden_size"], config["emb_size"]
    if config["encoder"] == "transformer":
        if config.get("factorized_embedding_parameterization"):
            yield from linear("encoder.linear", hidden, embedded)
        is_shared = config.get("parameter_sharing")
        for number in range(1 if is_shared else config["layers_num"]):
            name = "encoder.transformer" if is_shared else f"encoder.transformer.{number}"
            yield from block_shapes(config, name, ("self_attn",))
        if config.get("relative_position_embedding"):
            name = "encoder.transformer.0.relative_pos_emb.relative_attention_bias.weight"
            yield name, (32, config["heads_num"])
            yield (
                "encoder.relative_pos_emb.relative_attention_bias.weight",
                (32, config["heads_num"]),
            )
        yield from final_norm(config, "encoder.layer_norm")
    else:
        yield from sequence_shapes(config)
    if config.get("decoder"):
        rows = VOCABULARY if config.get("share_embedding") else TARGET_VOCABULARY
        yield from embedding_shapes(config, "tgt_embedding", rows)
        for number in range(config["decoder_layers_num"]):
            name = f"decoder.transformer_decoder.{number}"
            yield from block_shapes(config, name, ("self_attn", "context_attn"))
        if config.get("relative_position_embedding"):
            name = "decoder.self_pos_emb.relative_attention_bias.weight"
            yield name, (32, config["heads_num"])
        yield from final_norm(config, "decoder.layer_norm")
    yield from target_shapes(config)


def linear(name: str, outputs: int, inputs: int, has_bias: bool = True) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    if has_bias:
        yield f"{name}.bias", (outputs,)


def norm(config: dict[str, Any], name: str, size: int, is_normal: bool = False) -> Shapes:
    if is_normal or config.get("layernorm", "normal") == "normal":
        yield f"{name}.gamma", (size,)
        yield f"{name}.beta", (size,)
    else:
        yield f"{name}.weight", (size,)


def final_norm(config: dict[str, Any], name: str) -> Shapes:
    if config.get("layernorm_positioning") == "pre":
        yield from norm(config, name, config["hidden_size"])


def embedding_shapes(config: dict[str, Any], side: str, rows: int) -> Shapes:
    parts = config["embedding" if side == "embedding" else "tgt_embedding"]
    sizes = {"word": rows, "pos": config.get("max_seq_length"), "seg": 3}
    for part, count in sizes.items():
        if part in parts:
            yield f"{side}.{part}.embedding.weight", (count, config["emb_size"])
    if not config.get("remove_embedding_layernorm"):
        yield from norm(config, f"{side}.layer_norm", config["emb_size"], is_normal=True)


def block_shapes(config: dict[str, Any], name: str, attentions: tuple[str, ...]) -> Shapes:
    hidden, ffn, heads = config["hidden_size"], config["feedforward_size"], config["heads_num"]
    size = config.get("attention_head_size", hidden // heads)
    has_bias = not config.get("remove_transformer_bias", False)
    widths = [heads * size, *[config.get("local_kv_heads_num", heads) * size] * 2]
    for attention in attentions:
        for number, width in enumerate(widths):
            yield from linear(f"{name}.{attention}.linear_layers.{number}", width, hidden, has_bias)
        yield from linear(f"{name}.{attention}.final_linear", hidden, heads * size, has_bias)
    yield from linear(f"{name}.feed_forward.linear_1", ffn, hidden, has_bias)
    yield from linear(f"{name}.feed_forward.linear_2", hidden, ffn, has_bias)
    if config.get("feed_forward") == "gated":
        yield from linear(f"{name}.feed_forward.linear_gate", ffn, hidden, has_bias)
    for number in range(len(attentions) + 1):
        yield from norm(config, f"{name}.layer_norm_{number + 1}", hidden)


def sequence_shapes(config: dict[str, Any]) -> Shapes:
    kind, hidden, layers = config["encoder"], config["hidden_size"], config["layers_num"]
    inputs = config["emb_size"]
    if kind == "gatedcnn":
        size = config["kernel_size"]
        for what in ("conv", "gate"):
            yield f"encoder.{what}_1.weight", (hidden, 1, size, inputs)
            yield f"encoder.{what}_1.bias", (hidden,)
            yield f"encoder.{what}_b1", (1, hidden, 1, 1)
            for number in range(layers - 1):
                yield f"encoder.{what}.{number}.weight", (hidden, hidden, size, 1)
                yield f"encoder.{what}.{number}.bias", (hidden,)
                yield f"encoder.{what}_b.{number}", (1, hidden, 1, 1)
        return
    stacks: dict[str, nn.Module] = {}
    if kind in CELLS:
        both = config.get("bidirectional", False)
        width = hidden // (1 + both)
        stacks["rnn"] = CELLS[kind](inputs, width, layers, bidirectional=both)
    else:
        cell = CELLS[kind.removeprefix("bi")]
        stacks = {
            f"rnn_{way}": cell(inputs, hidden // 2, layers) for way in ("forward", "backward")
        }
    for name, stack in stacks.items():
        yield from ((f"encoder.{name}.{n}", tuple(t.shape)) for n, t in stack.state_dict().items())


def target_shapes(config: dict[str, Any]) -> Shapes:
    hidden, embedded = config["hidden_size"], config["emb_size"]
    is_narrow = config.get("factorized_embedding_parameterization")
    width = embedded if is_narrow else hidden
    for target in config["target"]:
        if target == "mlm":
            yield from linear("target.mlm.linear_1", width, hidden)
            yield from norm(config, "target.mlm.layer_norm", width, is_normal=True)
            yield from linear("target.mlm.linear_2", VOCABULARY, width)
        elif target == "sp":
            yield from linear("target.sp.linear_1", hidden, hidden)
            yield from linear("target.sp.linear_2", 2, hidden)
        elif target == "bilm":
            yield from linear("target.bilm.output_layer", VOCABULARY, hidden // 2, has_bias=False)
        elif target == "lm":
            is_apart = config.get("decoder") and not config.get("share_embedding")
            rows = TARGET_VOCABULARY if is_apart else VOCABULARY
            has_bias = config.get("has_lmtarget_bias", False)
            yield from linear("target.lm.output_layer", rows, hidden, has_bias)
