"""Tiny models, batches and layouts for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from tencentpretrain.config import decode
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.model_files import find_model, load_inherited
from tencentpretrain.types import Batch, Labels, Layout, Stream, TargetOutput

MODELS = Path(__file__).resolve().parents[2] / "models"
VOCABULARY = 50
TINY = {"hidden": 16, "encoder": {"layers": 2, "heads": 2, "ffn": 32}}
"""Overrides that shrink any shipped model of text."""


def model_data(name: str, *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of the shipped model `name` with `overrides` merged over it."""
    data = load_inherited(find_model(name, [MODELS]), [MODELS])
    merged = OmegaConf.to_container(OmegaConf.merge(data, *overrides))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def model_config(name: str, *overrides: Mapping[str, Any]) -> ModelConfig:
    """Config of the shipped model `name` with `overrides` merged over it."""
    return decode(ModelConfig, model_data(name, *overrides))


def tiny_model(name: str, *overrides: Mapping[str, Any], seed: int = 0) -> Model:
    """A shrunk shipped model over `VOCABULARY` ids."""
    return build_model(model_config(name, TINY, *overrides), VOCABULARY, seed=seed)


def randomise(module: nn.Module, std: float = 0.2) -> None:
    """Fill all parameters so that none is at a value that hides mistakes, such as 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            centre = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
            parameter.normal_(centre, std)


def layout_of(lengths: Sequence[int], width: int | None = None, **kwargs: Tensor) -> Layout:
    """Rows of `lengths` in a grid of `width` positions, padded on the right."""
    positions = torch.arange(width or max(lengths))
    return Layout.of(positions < torch.tensor(lengths)[:, None], **kwargs)


def text_batch(
    lengths: Sequence[int],
    targets: Sequence[str] = ("mlm", "nsp"),
    width: int | None = None,
    vocabulary: int = VOCABULARY,
    seed: int = 0,
) -> Batch:
    """Random rows of `lengths` with segments and labels for `targets`; padding has id 0."""
    generator = torch.Generator().manual_seed(seed)
    layout = layout_of(lengths, width)
    shape = layout.valid.shape
    ids = torch.randint(3, vocabulary, shape, generator=generator) * layout.valid
    halves = torch.tensor(lengths)[:, None] // 2
    segments = ((torch.arange(shape[1]) >= halves) & layout.valid).long()
    labels: dict[str, Labels] = {}
    flat = layout.valid.flatten().nonzero().squeeze(1)
    for name in targets:
        if name in ("nsp", "sop"):
            labels[name] = Labels(torch.randint(2, shape[:1], generator=generator))
            continue
        if name == "lm":
            ends = torch.tensor([row * shape[1] + n - 1 for row, n in enumerate(lengths)])
            index = flat[~torch.isin(flat, ends)]
            labels[name] = Labels(ids.flatten()[index + 1], index)
        else:
            index = flat[::3]
            values = torch.randint(3, vocabulary, index.shape, generator=generator)
            labels[name] = Labels(values, index)
    stream = Stream({"ids": ids, "segments": segments}, layout)
    return Batch({"src": stream}, labels, sum(lengths))


def total_loss(output: TargetOutput) -> Tensor:
    """Sum [] of the means of all losses."""
    return torch.stack([ratio.value for ratio in output.losses.values()]).sum()
