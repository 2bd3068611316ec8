"""Tiny models that write, and what they wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.config import decode
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.engine import Engine
from tencentpretrain.generate.rows import RowOptions
from tencentpretrain.generate.written import Written
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.types import Batch, Layout, ModelOutput, Stream

VOCABULARY, POSITIONS = 50, 24
STACK = {"name": "transformer", "layers": 2, "heads": 4, "ffn": 24, "dropout": 0.0}
LEARNED = {"word": {}, "position": {"length": POSITIONS}}
ROTARY = {"kind": "linear", "factor": 2.0}
MODELS: dict[str, dict[str, Any]] = {
    "none": {},
    "learned": {"parts": LEARNED},
    "sinusoidal": {"parts": {"word": {"scale": True}, "sinusoidal": {"layout": "halves"}}},
    "segments": {"parts": {**LEARNED, "segment": {}}},
    "rotary": {"rotary": {}, "kv_heads": 2, "qk_norm": True},
    "interleaved": {"rotary": {"layout": "interleaved", "scaling": ROTARY}},
    "llama3": {"rotary": {"scaling": {"kind": "llama3", "factor": 4.0, "length": 8}}},
    "relative": {"relative": {"buckets": 8, "distance": 6}, "scale_scores": False},
    "alibi": {"alibi": True, "kv_heads": 1},
    "window": {"window": 3, "global_every": 2, "rotary": {"local_theta": 100.0}},
    "prefix": {"parts": LEARNED, "mask": "prefix"},
    "residual": {"residual_attention": True, "share_blocks": True, "parts": LEARNED},
    "lstm": {"name": "lstm", "layers": 2},
    "gated_cnn": {"name": "gated_cnn", "layers": 3, "kernel_size": 3},
}
"""Keys of the encoder, and the parts of the embedding, by the name of a model."""


def writer_config(kind: str = "learned", **keys: Any) -> ModelConfig:
    """Config of a causal model of a kind."""
    chosen = dict(MODELS[kind])
    parts = chosen.pop("parts", {"word": {}})
    stack = chosen if "name" in chosen else {**STACK, "mask": "causal", **chosen}
    data = {
        "hidden": 16,
        "embedding": {"parts": parts, "norm": "none", "dropout": 0.0},
        "encoder": stack,
        "target": {"lm": {}},
        "init": {"std": 0.5},
    }
    return decode(ModelConfig, data | keys)


def pair_config(parts: dict[str, Any] | None = None, **keys: Any) -> ModelConfig:
    """Config of an encoder-decoder whose sides have different widths."""
    embedding = {"parts": parts or LEARNED, "norm": "layer", "dropout": 0.0}
    data = {
        "hidden": 12,
        "target_hidden": 16,
        "embedding": embedding,
        "target_embedding": embedding,
        "encoder": STACK,
        "decoder": {**STACK, "mask": "causal", **keys.pop("decoder", {})},
        "target": {"lm": {}},
        "init": {"std": 0.5},
    }
    return decode(ModelConfig, data | keys)


def built(config: ModelConfig, seed: int = 0, vocabulary: int = VOCABULARY) -> Model:
    """A model with large random weights and no biases, so that each text is another one."""
    return build_model(config, vocabulary, seed=seed).eval()


def random_prompts(lengths: Sequence[int], seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def write(
    model: Model,
    prompts: Sequence[Sequence[int]],
    limit: int = 12,
    ends: Sequence[int] = (),
    *,
    start: Sequence[int] = (),
    numbers: Sequence[int] | None = None,
    options: RowOptions | None = None,
    **keys: Any,
) -> list[Written]:
    """What `model` writes for each prompt, computed as one batch."""
    engine = Engine(model, start=start, options=options or RowOptions())
    written = [Written(engine.limit(prompt, limit), ends) for prompt in prompts]
    engine.write(prompts, written, decode(Decoding, keys), numbers)
    return written


def ids_of(written: Sequence[Written]) -> list[list[int]]:
    return [row.ids for row in written]


def whole_scores(model: Model, ids: list[int], prefix: int | None = None) -> Tensor:
    """Scores [V] of what follows on `ids`, all of them read at once and alone."""
    layout = Layout.of(torch.ones(1, len(ids), dtype=torch.bool))
    layout.prefix = None if prefix is None else torch.tensor([prefix])
    with torch.inference_mode():
        hidden = model.read(Stream({"ids": torch.tensor([ids])}, layout))
        return model.target["lm"].logits(ModelOutput(hidden, {}), Batch({}))[-1]
