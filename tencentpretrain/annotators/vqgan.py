"""Published autoencoders with codes: the layout of taming-transformers (Esser et al., 2021)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.convert.weights import open_weights
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.train.load import load_weights

LABEL: Final = "reconstruct"
"""Name of the target in models made of published weights."""
CODEBOOK: Final = "quantize.embedding.weight"
PREFIXES: Final = {
    "encoder.": "embedding.image.net.",
    "quant_conv.": f"target.{LABEL}.quant_conv.",
    CODEBOOK: f"target.{LABEL}.codebook.weight",
    "post_quant_conv.": f"target.{LABEL}.post_quant_conv.",
    "decoder.": f"target.{LABEL}.net.",
}
"""Beginnings of their names and of ours; what follows is the same."""
TRAINING: Final = "loss."
"""Beginning of the names of what only their training needs: discriminator and perceptual net."""
USAGE: Final = "*.codebook.usage"
"""What is counted in training only."""


def read_vqgan(path: Path, device: torch.device | str = "cpu") -> tuple[ModelConfig, Model]:
    """The model whose weights a file holds, built in the sizes that their shapes tell.

    Args:
        path: A safetensors file, or a file of `torch.save`; no code in it is run.
        device: Of the model.

    Raises:
        CheckpointError: if it cannot be read safely, or has another layout.
    """
    theirs = open_weights(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.described.items()}
    try:
        config = decode(ModelConfig, vqgan_config(shapes, path))
    except ConfigError as error:
        raise CheckpointError(f"`{path}` has sizes that no model can have: {error}") from error
    model = build_model(config, 1, device)
    tensors = {_ours(name): theirs[name] for name in theirs if not name.startswith(TRAINING)}
    load_weights(model, tensors, allow_missing=[USAGE])
    return config, model.eval()


def vqgan_config(shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    """Plain data of the model whose weights have `shapes` by their names.

    Raises:
        CheckpointError: if they are of another kind of model.
    """
    first, last = "encoder.conv_in.weight", "encoder.conv_out.weight"
    absent = [name for name in (first, last, CODEBOOK) if name not in shapes]
    if absent:
        raise CheckpointError(
            f"`{path}` holds no autoencoder in the layout of taming-transformers: it has no "
            f"`{absent[0]}`; give its VQModel (not GumbelVQ), or a run of our own"
        )
    channels, cells = shapes[first][0], shapes[last][0]
    widths, blocks, attention = _levels(shapes)
    if any(width % channels for width in widths):
        raise CheckpointError(
            f"`{path}` has levels of {widths} channels, which are no multiples of {channels}"
        )
    keys = {
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": blocks,
        "attention": attention,
    }
    codes, size = shapes[CODEBOOK]
    return {
        "hidden": cells,
        "embedding": {
            "parts": {"image": {"name": "cells", **keys}},
            "norm": "none",
            "dropout": 0.0,
        },
        "encoder": {"name": "none"},
        "target": {LABEL: {**keys, "codes": codes, "code_size": size}},
    }


def _levels(shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[int], int, list[int]]:
    """Channels of each level, blocks of a level, and the levels with attention."""
    widths: dict[int, int] = {}
    blocks = 0
    for name, shape in shapes.items():
        found = re.fullmatch(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight", name)
        if found:
            widths[int(found[1])] = shape[0]
            blocks = max(blocks, int(found[2]) + 1)
    attention = [n for n in sorted(widths) if f"encoder.down.{n}.attn.0.q.weight" in shapes]
    return [widths[number] for number in sorted(widths)], max(1, blocks), attention


def to_vqgan(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model of ours under their names, as `read_vqgan` reads them."""
    named = {}
    for theirs, ours in PREFIXES.items():
        for name, tensor in tensors.items():
            if name.startswith(ours):
                named[theirs + name.removeprefix(ours)] = tensor
    return named


def _ours(name: str) -> str:
    for theirs, ours in PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
