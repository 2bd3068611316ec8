"""A model without its training, to be handed on: what `scripts/export.py` does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, Literal

import torch
from torch import Tensor

from tencentpretrain.config import Config, PathLike
from tencentpretrain.errors import before_start
from tencentpretrain.targets.companion import without_companions, without_helpers
from tencentpretrain.tools.outputs import (
    check_directory,
    model_files,
    model_fingerprints,
    model_sections,
    write_model,
)
from tencentpretrain.train.base import model_tensors
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tencentpretrain.train.tensor_file import LazyTensors

log = logging.getLogger("tencentpretrain")

Precision = Literal["same", "fp32", "bf16", "fp16"]
TYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ExportConfig(Config):
    """Write a model without its training."""

    checkpoint: PathLike
    """Run directory, of which the best checkpoint is taken, or one of its checkpoints."""
    output: PathLike
    """Directory to make: model.safetensors, config.yaml, tokenizer and what a task learned."""
    overwrite: bool = False
    """Whether a model at output may be replaced."""
    precision: Precision = "same"
    """Type of the stored weights: same as in the checkpoint, fp32, bf16 or fp16."""
    plugins: list[str] = []
    """Packages to import that register components of your own."""


def exported(tensors: Mapping[str, Tensor], precision: Precision) -> LazyTensors:
    """`tensors` without those that only training needs, in `precision`, one at a time in memory."""
    source = tensors if isinstance(tensors, LazyTensors) else LazyTensors.of(tensors)

    def converted(tensor: Tensor) -> Tensor:
        is_kept = precision == "same" or not tensor.is_floating_point()
        return tensor if is_kept else tensor.to(TYPES[precision])

    kept = without_helpers(source.described)
    kinds = {name: converted(kind) for name, kind in kept.items()}
    return LazyTensors(kinds, lambda name: converted(source[name]))


def run_export(config: ExportConfig) -> int:
    """Export as `config` says; returns the exit code."""
    with before_start():
        check_directory(config.output, config.overwrite, [config.checkpoint])
        checkpoint = open_checkpoint(config.checkpoint)
        tensors = exported(model_tensors(checkpoint), config.precision)
        files = model_files(checkpoint)
        sections = model_sections(checkpoint)
        if "model" in sections:
            sections["model"] = without_companions(sections["model"])
    fingerprints = model_fingerprints(checkpoint)
    write_model(config.output, tensors, sections, files, checkpoint.step, fingerprints)
    log.info(f"the model of {checkpoint.path} is in {config.output}")
    return 0
