"""What the sources say of every shipped model, and the same models made small."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from tencentpretrain.model import ModelConfig
from tests.helpers.counting import count as count
from tests.helpers.models import TINY, model_config

EXACT = 1e-9


class Published(NamedTuple):
    """Entries, parameters in millions, width, layers and heads (0 for none) on either side.

    Decoders may have fewer layers than encoders.
    """

    vocabulary: int
    millions: float
    hidden: int
    layers: int
    heads: int
    tolerance: float = 0.005
    decoder_layers: int | None = None


PUBLISHED = {
    "albert/base": Published(30000, 12, 768, 12, 12, 0.02),
    "albert/large": Published(30000, 18, 1024, 24, 16, 0.01),
    "albert/xlarge": Published(30000, 60, 2048, 24, 16, 0.02),
    # The paper counts 235; its released weights hold 223.
    "albert/xxlarge": Published(30000, 223, 4096, 12, 64),
    # The released tables hold two more rows on either side, for positions that never occur.
    "bart/tiny": Published(50265, 7.62, 128, 2, 2),
    "bart/mini": Published(50265, 20.77, 256, 4, 4),
    "bart/base": Published(50265, 139.420416 - 4 * 768e-6, 768, 6, 12, EXACT),
    "bart/large": Published(50265, 406.291456 - 4 * 1024e-6, 1024, 12, 16, EXACT),
    # Their entries are codes of patches.
    "beit/tiny": Published(8192, 7.072340, 192, 12, 3, EXACT),
    "beit/base": Published(8192, 91.965776, 768, 12, 12, EXACT),
    "beit/large": Published(8192, 311.534016, 1024, 24, 16, EXACT),
    "bert/tiny": Published(30522, 4.4, 128, 2, 2, 0.01),
    "bert/mini": Published(30522, 11.3, 256, 4, 4),
    "bert/small": Published(30522, 29.1, 512, 4, 8),
    "bert/medium": Published(30522, 41.7, 512, 8, 8),
    "bert/base": Published(30522, 110.106428, 768, 12, 12, EXACT),
    "bert/large": Published(30522, 336.226108, 1024, 24, 16, EXACT),
    "bert/xlarge": Published(21128, 1057.9, 1536, 36, 24),
    "bert_wwm/base": Published(21128, 102.882442, 768, 12, 12, EXACT),
    "bert_wwm/large": Published(21128, 326, 1024, 24, 16),
    "bloom/tiny": Published(250880, 32.5, 128, 2, 2),
    "bloom/560m": Published(250880, 559.214592, 1024, 24, 16, EXACT),
    "bloom/1b1": Published(250880, 1065.314304, 1536, 24, 16, EXACT),
    "bloom/1b7": Published(250880, 1722.408960, 2048, 24, 16, EXACT),
    "bloom/3b": Published(250880, 3002.557440, 2560, 30, 32, EXACT),
    "bloom/7b1": Published(250880, 7069.016064, 4096, 30, 32, EXACT),
    "bloom/176b": Published(250880, 176247.271424, 14336, 70, 112, EXACT),
    # Sizes of the text tower; the image tower is counted beside.
    "clip/base_16": Published(49408, 149.620737, 512, 12, 8, EXACT),
    "clip/base_32": Published(49408, 151.277313, 512, 12, 8, EXACT),
    "clip/large_14": Published(49408, 427.616513, 768, 12, 12, EXACT),
    "clip/tiny": Published(49408, 8.568193, 128, 2, 2, EXACT),
    # Entries of words and of codes of images; one output layer for both.
    "dalle/tiny": Published(22152, 6.133632, 128, 2, 2, EXACT),
    "dalle/base": Published(22152, 119.476992, 768, 12, 12, EXACT),
    "distilbert/base": Published(30522, 66.985530, 768, 6, 12, EXACT),
    "elmo/bilstm": Published(21128, 44.4, 1536, 2, 0),
    "gated_cnn/l9": Published(21128, 62.3, 807, 9, 0),
    "gated_cnn/l13": Published(21128, 185.2, 1268, 13, 0),
    "gpt2/tiny": Published(50257, 6.86, 128, 2, 2),
    "gpt2/mini": Published(50257, 30.04, 384, 6, 6),
    "gpt2/distil": Published(50257, 81.912576, 768, 6, 12, EXACT),
    "gpt2/small": Published(50257, 124.439808, 768, 12, 12, EXACT),
    "gpt2/medium": Published(50257, 354.823168, 1024, 24, 16, EXACT),
    "gpt2/large": Published(50257, 774.030080, 1280, 36, 20, EXACT),
    "gpt2/xlarge": Published(50257, 1557.611200, 1600, 48, 25, EXACT),
    "llama/tiny": Published(32000, 8.59, 128, 2, 2),
    "llama/mini": Published(32000, 19.55, 256, 4, 4),
    "llama/7b": Published(32000, 6738.415616, 4096, 32, 32, EXACT),
    "llama/13b": Published(32000, 13015.864320, 5120, 40, 40, EXACT),
    "llama/33b": Published(32000, 32528.943616, 6656, 60, 52, EXACT),
    "llama/65b": Published(32000, 65285.660672, 8192, 80, 64, EXACT),
    "llama2/7b": Published(32000, 6738.415616, 4096, 32, 32, EXACT),
    "llama2/13b": Published(32000, 13015.864320, 5120, 40, 40, EXACT),
    "llama2/70b": Published(32000, 68976.648192, 8192, 80, 64, EXACT),
    "llama3/8b": Published(128256, 8030.261248, 4096, 32, 32, EXACT),
    "llama3/70b": Published(128256, 70553.706496, 8192, 80, 64, EXACT),
    "llama3_1/8b": Published(128256, 8030.261248, 4096, 32, 32, EXACT),
    "llama3_1/70b": Published(128256, 70553.706496, 8192, 80, 64, EXACT),
    "llama3_1/405b": Published(128256, 405853.388800, 16384, 126, 128, EXACT),
    "llama3_2/1b": Published(128256, 1235.814400, 2048, 16, 32, EXACT),
    "llama3_2/3b": Published(128256, 3212.749824, 3072, 28, 24, EXACT),
    # Without entries; the decoder is counted, too.
    "mae/tiny": Published(1, 6.403840, 192, 12, 3, EXACT),
    "mae/base_16": Published(1, 111.655680, 768, 12, 12, EXACT),
    "mae/large_16": Published(1, 329.239296, 1024, 24, 16, EXACT),
    "mae/huge_14": Published(1, 656.613964, 1280, 32, 16, EXACT),
    "megatron/bert_3.9b": Published(30522, 3900, 2560, 48, 40, 0.01),
    "megatron/gpt2_8.3b": Published(50257, 8300, 3072, 72, 24),
    "minilm/l6-h384": Published(30522, 22.7, 384, 6, 12),
    "minilm/l12-h384": Published(30522, 33.4, 384, 12, 12),
    "mistral/7b_v0.1": Published(32000, 7241.732096, 4096, 32, 32, EXACT),
    "mistral/7b_v0.3": Published(32768, 7248.023552, 4096, 32, 32, EXACT),
    "modernbert/tiny": Published(50368, 7.07, 128, 4, 2),
    "modernbert/mini": Published(50368, 16.9, 256, 7, 4),
    "modernbert/base": Published(50368, 149.655232, 768, 22, 12, EXACT),
    "modernbert/large": Published(50368, 395.881664, 1024, 28, 16, EXACT),
    "pegasus/tiny": Published(96103, 13.2, 128, 2, 2),
    "pegasus/base": Published(96103, 272.285952, 768, 12, 12, EXACT),
    "pegasus/large": Published(96103, 568.699904, 1024, 16, 16, EXACT),
    "qwen2/0.5b": Published(151936, 494.032768, 896, 24, 14, EXACT),
    "qwen2/1.5b": Published(151936, 1543.714304, 1536, 28, 12, EXACT),
    "qwen2/7b": Published(152064, 7615.616512, 3584, 28, 28, EXACT),
    "qwen3/tiny": Published(151936, 19.84, 128, 2, 2),
    "qwen3/0.6b": Published(151936, 596.049920, 1024, 28, 16, EXACT),
    "qwen3/1.7b": Published(151936, 1720.574976, 2048, 28, 16, EXACT),
    "qwen3/4b": Published(151936, 4022.468096, 2560, 36, 32, EXACT),
    "qwen3/8b": Published(151936, 8190.735360, 4096, 36, 32, EXACT),
    "rnn/lstm": Published(21128, 25.8, 512, 2, 0),
    "rnn/gru": Published(21128, 24.8, 512, 2, 0),
    "roberta/tiny": Published(50265, 6.96, 128, 2, 2),
    "roberta/mini": Published(50265, 16.3, 256, 4, 4),
    "roberta/distil": Published(50265, 82, 768, 6, 12),
    # The released tables hold three more rows: two unused positions and the only segment.
    "roberta/base": Published(50265, 124.697433 - 3 * 768e-6, 768, 12, 12, EXACT),
    "roberta/large": Published(50265, 355.412057 - 3 * 1024e-6, 1024, 24, 16, EXACT),
    "s2t/tiny": Published(10000, 2.869504, 128, 4, 2, EXACT, 2),
    "s2t/small": Published(10000, 29.536256, 256, 12, 4, EXACT, 6),
    "s2t/medium": Published(10000, 71.207936, 512, 12, 8, EXACT, 6),
    "s2t/large": Published(10000, 267.834368, 1024, 12, 16, EXACT, 6),
    # BERT without its pooler.
    "sbert/tiny": Published(30522, 4.37, 128, 2, 2),
    "sbert/mini": Published(30522, 11.1, 256, 4, 4),
    "sbert/base": Published(30522, 108.891648, 768, 12, 12, EXACT),
    "sbert/large": Published(30522, 334.092288, 1024, 24, 16, EXACT),
    "siamese/lstm": Published(21128, 15.0, 512, 2, 0),
    "t5/tiny": Published(32128, 15.570688, 256, 4, 4, EXACT),
    "t5/mini": Published(32128, 31.220480, 384, 4, 8, EXACT),
    "t5/small": Published(32128, 60.506624, 512, 6, 8, EXACT),
    "t5/base": Published(32128, 222.903552, 768, 12, 12, EXACT),
    "t5/large": Published(32128, 737.668096, 1024, 24, 16, EXACT),
    "t5/3b": Published(32128, 2851.598336, 1024, 24, 32, EXACT),
    "t5/11b": Published(32128, 11307.321344, 1024, 24, 128, EXACT),
    "t5_v1_1/tiny": Published(32128, 22.75, 256, 4, 4),
    "t5_v1_1/small": Published(32128, 76.961152, 512, 8, 6, EXACT),
    "t5_v1_1/base": Published(32128, 247.577856, 768, 12, 12, EXACT),
    "t5_v1_1/large": Published(32128, 783.150080, 1024, 24, 16, EXACT),
    "t5_v1_1/xlarge": Published(32128, 2849.757184, 2048, 24, 32, EXACT),
    "t5_v1_1/xxlarge": Published(32128, 11135.332352, 4096, 24, 64, EXACT),
    "talk2face/base": Published(22152, 119.871744, 768, 12, 12, EXACT),
    # The paper has one table for both languages: see the test of its figures.
    "transformer/tiny": Published(37000, 10.4, 128, 2, 2),
    "transformer/mini": Published(37000, 26.3, 256, 4, 4),
    "transformer/base": Published(37000, 82.026496, 512, 6, 8, EXACT),
    "transformer/big": Published(37000, 252.133376, 1024, 6, 16, EXACT),
    # Theirs for masked words and for matching, which share all but the heads.
    "vilt/base": Published(30522, 112.217658 + 2 * 769e-6, 768, 12, 12, EXACT),
    # Those of a linear classifier of 1,000 classes, and of the layer before it in pre-training.
    "vit/tiny": Published(1, 5.717416 + 192 * 193e-6, 192, 12, 3, EXACT),
    "vit/small": Published(1, 22.050664 + 384 * 385e-6, 384, 12, 6, EXACT),
    "vit/base_16": Published(1, 86.567656 + 768 * 769e-6, 768, 12, 12, EXACT),
    "vit/base_32": Published(1, 88.224232 + 768 * 769e-6, 768, 12, 12, EXACT),
    "vit/large_16": Published(1, 304.326632 + 1024 * 1025e-6, 1024, 24, 16, EXACT),
    "vit/large_32": Published(1, 306.535400 + 1024 * 1025e-6, 1024, 24, 16, EXACT),
    "vit/huge_14": Published(1, 632.045800 + 1280 * 1281e-6, 1280, 32, 16, EXACT),
    "vilt/tiny": Published(30522, 7.774844, 192, 4, 3, EXACT),
    # The published count of VQGAN f16, less the nets that only its training needs.
    "vqvae/base": Published(1, 72.141699, 256, 0, 0, EXACT),
    "vqvae/cifar": Published(1, 0.754915, 64, 0, 0, EXACT),
    # Without the positions of sounds, which are stored, but never trained.
    "whisper/tiny": Published(51865, 37.184640, 384, 4, 6, EXACT),
    "whisper/base": Published(51865, 71.825920, 512, 6, 8, EXACT),
    "whisper/small": Published(51865, 240.582912, 768, 12, 12, EXACT),
    "whisper/medium": Published(51865, 762.321920, 1024, 24, 16, EXACT),
    "whisper/large": Published(51865, 1541.384960, 1280, 32, 20, EXACT),
    "whisper/large_v3": Published(51866, 1541.570560, 1280, 32, 20, EXACT),
    "xlm_r/base": Published(250002, 278.295186 - 3 * 768e-6, 768, 12, 12, EXACT),
    "xlm_r/large": Published(250002, 560.142482 - 3 * 1024e-6, 1024, 24, 16, EXACT),
}
BANDS = 12
"""Values of the frames of a shrunk model."""
IMAGE = 8
"""Height and width of the images of a shrunk model, two patches each."""
NET = {"channels": 4, "multipliers": [1, 2], "blocks": 1, "attention": [1], "groups": 2}
"""Keys of a shrunk convolutional net."""


@cache
def shipped(name: str) -> ModelConfig:
    """Config of the shipped model `name`."""
    return model_config(name)


def shrunk(name: str) -> ModelConfig:
    """The model `name` with its own parts, but narrow, flat and over short rows."""
    whole = shipped(name)
    changes: dict[str, Any] = {"hidden": TINY["hidden"], "objective": {}}
    if hasattr(whole.objective, "length"):
        changes["objective"]["length"] = 32
    if whole.decoder is not None:
        changes["objective"]["target_length"] = 32
    for side in ("embedding", "target_embedding"):
        embedding = getattr(whole, side)
        if embedding is not None:
            changes[side] = shrunk_embedding(embedding)
    for side in ("encoder", "decoder"):
        given = getattr(whole, side)
        changes |= {side: shrunk_stack(given)} if given is not None else {}
    changes["towers"] = {
        name: {
            "hidden": TINY["hidden"],
            "embedding": shrunk_embedding(tower.embedding),
            "encoder": shrunk_stack(tower.encoder),
        }
        for name, tower in whole.towers.items()
    }
    if hasattr(whole.objective, "transform"):
        changes["objective"]["transform"] = {"size": IMAGE, "resize": None}
    if hasattr(whole.objective, "bank"):
        changes["objective"] |= {"bank": {"bands": BANDS}, "prompt": []}
    if hasattr(whole.objective, "patch_size"):
        changes["objective"]["patch_size"] = IMAGE // 2
    if hasattr(whole.objective, "cell_size"):
        changes["objective"]["cell_size"] = IMAGE // 2
    if "reconstruct" in whole.target:
        changes["target"] = {"reconstruct": NET}
    if hasattr(whole.objective, "least_block"):
        changes["objective"]["least_block"] = 1
    if "masked_pixels" in whole.target:
        decoder = {"hidden": TINY["hidden"], **TINY["encoder"]}
        changes["target"] = {"masked_pixels": {"decoder": decoder}}
    return model_config(name, changes)


def shrunk_embedding(embedding: Any) -> dict[str, Any]:
    """What is narrower, shorter and smaller in the parts of an embedding."""
    parts: dict[str, Any] = {}
    for name, part in embedding.parts.items():
        if name == "position":
            parts[name] = {"length": 32}
        elif name == "patch":
            parts[name] = {"image_size": IMAGE, "patch_size": IMAGE // 2}
        elif part.name == "cells":
            parts[name] = NET
        elif name == "frames":
            parts[name] = {"bands": BANDS} | ({"channels": 8} if part.channels else {})
        elif name == "concat":
            inner = {key: shrunk_embedding(value) for key, value in part.embeddings.items()}
            parts[name] = {"embeddings": inner}
    return {"parts": parts} | ({"size": 8} if embedding.size else {})


def shrunk_stack(stack: Any) -> dict[str, Any]:
    """What is narrower and flatter in an encoder or decoder."""
    small = TINY["encoder"] | {"kv_heads": 1, "head_size": 8}
    return {key: value for key, value in small.items() if getattr(stack, key, None) is not None}
