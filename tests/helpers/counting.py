"""Parameters of a model counted by arithmetic, from its sizes alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tencentpretrain.model import ModelConfig

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def count(config: ModelConfig, vocabulary: int) -> int:
    """Parameters by arithmetic, from the sizes alone; all ties are of tables of words."""
    d, e = config.hidden, config.embedding.size or config.hidden
    total = count_embedding(config.embedding, e, vocabulary) + count_encoder(config.encoder, d, e)
    if getattr(config.encoder, "patch_scores", None) is not None:
        patches = config.embedding.patches
        offsets = (2 * patches.rows - 1) * (2 * patches.columns - 1) + 3
        tables = 1 if config.encoder.patch_scores == "shared" else config.encoder.layers
        total += offsets * config.encoder.heads * tables
    for tower in config.towers.values():
        width = tower.hidden or d
        total += count_embedding(tower.embedding, width, vocabulary)
        total += count_encoder(tower.encoder, width, width)
    if config.decoder is not None:
        total += count_embedding(config.target_embedding, d, vocabulary)
        total += count_stack(config.decoder, d, attentions=2)
    for name, target in config.target.items():
        keys: Any = target
        if name == "mlm" and not keys.dense:
            total += vocabulary * (d + 1)
        elif name == "classify":
            total += (d * d + d if keys.dense else 0) + norm(keys.norm, d) + (d + 1) * keys.classes
        elif name == "masked_pixels":
            width = keys.decoder.hidden
            total += (d + 2) * width + count_stack(keys.decoder.stack(), width)
            total += (width + 1) * config.embedding.patches.values
        elif name == "mlm":
            total += d * e + (e if keys.bias else 0) + norm(keys.norm, e) + vocabulary * (e + 1)
        elif name in ("nsp", "sop", "match"):
            total += d * d + d + 2 * d + 2
        elif name == "reconstruct":
            total += count_maker(keys, d) + keys.codes * keys.code_size
            total += (d + 1) * keys.code_size + (keys.code_size + 1) * d
        elif keys.name in ("lm", "bilm"):
            total += vocabulary * (d // 2 if name == "bilm" else d)
        elif name == "contrast":
            widths = [getattr(config.towers.get(s), "hidden", d) for s in keys.streams]
            total += keys.learn_temperature + sum(widths) * (keys.size or 0)
    return total - len(config.ties) * vocabulary * e


def norm(kind: str, d: int) -> int:
    return {"none": 0, "layer": 2 * d}.get(kind, d)


def count_embedding(embedding: Any, e: int, vocabulary: int) -> int:
    """Parameters of an embedding of width `e`."""
    total = norm(embedding.norm, e)
    for part in embedding.parts.values():
        if part.name == "word":
            total += vocabulary * e
        elif part.name == "segment":
            total += part.types * e
        elif part.name == "position":
            total += part.length * e
        elif part.name == "patch":
            vectors = part.bias + part.class_token + part.mask_token
            total += (part.patches.values + vectors) * e
        elif part.name == "cells":
            total += count_reader(part, e)
        elif part.name == "frames":
            total += count_convolutions(part, e)
        elif part.name == "patch_position":
            total += embedding.patches.positions * e
        elif part.name == "concat":
            inner = part.embeddings.values()
            total += sum(count_embedding(one, e, vocabulary) for one in inner)
            total += len(inner) * e if part.kinds else 0
    return total


def count_convolutions(part: Any, e: int) -> int:
    """Parameters of convolutions over frames, whose outputs a gate may halve."""
    gates = 2 if part.activation == "glu" else 1
    inner, total, inputs = part.channels or gates * e, 0, part.bands
    for number, kernel in enumerate(part.kernels):
        outputs = gates * e if number == len(part.kernels) - 1 else inner
        total += outputs * (inputs * kernel + 1)
        inputs = outputs // gates
    return total


def count_reader(keys: Any, size: int) -> int:
    """Parameters of a convolutional net that reads images."""
    widths = [keys.channels, *(keys.channels * m for m in keys.multipliers)]
    total: int = (
        conv(3, widths[0]) + count_middle(widths[-1]) + 2 * widths[-1] + conv(widths[-1], size)
    )
    for level, (width, out) in enumerate(pairwise(widths)):
        total += count_level(width, out, keys.blocks, level in keys.attention)
        total += conv(out, out) if level < len(widths) - 2 else 0
    return total


def count_maker(keys: Any, size: int) -> int:
    """Parameters of a convolutional net that makes images."""
    widths = [keys.channels * m for m in keys.multipliers]
    total: int = (
        conv(size, widths[-1]) + count_middle(widths[-1]) + 2 * widths[0] + conv(widths[0], 3)
    )
    for level, (out, width) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
        total += count_level(width, out, keys.blocks + 1, level in keys.attention)
        total += conv(out, out) if level else 0
    return total


def count_level(width: int, out: int, blocks: int, attends: bool) -> int:
    """Parameters of the blocks of a level, each maybe with attention."""
    first = 2 * width + conv(width, out) + 2 * out + conv(out, out)
    first += conv(width, out, 1) if width != out else 0
    others = (blocks - 1) * (4 * out + 2 * conv(out, out))
    return first + others + (blocks * (2 * out + 4 * conv(out, out, 1)) if attends else 0)


def count_middle(width: int) -> int:
    return count_level(width, width, 2, False) + 2 * width + 4 * conv(width, width, 1)


def conv(width: int, out: int, side: int = 3) -> int:
    return (width * side * side + 1) * out


def count_encoder(encoder: Any, d: int, e: int) -> int:
    """Parameters of an encoder of width `d` and of what leads to it from an embedding of `e`."""
    if encoder.name == "none":
        return 0
    inputs = [e] + [d] * (encoder.layers - 1)
    if encoder.name == "gated_cnn":
        return sum(2 * (size * d * encoder.kernel_size + d) for size in inputs)
    if encoder.name in GATES:
        width = d // encoder.directions
        inputs = [e] + [width if encoder.separate else d] * (encoder.layers - 1)
        rows = GATES[encoder.name] * width * encoder.directions
        return sum(rows * (size + width + 2) for size in inputs)
    return count_stack(encoder, d) + (e * d + d if e != d else 0)


def count_stack(stack: Any, d: int, attentions: int = 1) -> int:
    """Parameters of transformer blocks of width `d`, each with so many attentions."""
    size, f = stack.head_size or d // stack.heads, stack.ffn or 4 * d
    queries, keys = stack.heads * size, (stack.kv_heads or stack.heads) * size
    attention = 2 * d * queries + 2 * d * keys + (d if stack.bias else 0)
    if stack.bias if stack.qkv_bias is None else stack.qkv_bias:
        attention += queries + keys + (keys if stack.key_bias is not False else 0)
    attention += 2 * size if stack.qk_norm else 0
    ups = 2 if stack.gated else 1
    feed_forward = (ups + 1) * d * f + (ups * f + d if stack.bias else 0)
    one = norm(stack.norm, d)
    block = attentions * (attention + one) + feed_forward + one
    block += (attentions + 1) * d if stack.layer_scale else 0
    total: int = block * (1 if stack.share_blocks else stack.layers)
    total -= 0 if stack.first_norm else one
    total += one if stack.norm_order == "pre" and stack.last_norm else 0
    return total + (stack.relative.buckets * stack.heads if stack.relative else 0)
