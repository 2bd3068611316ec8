"""The mean of the weights of several checkpoints: what `scripts/average.py` does."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.config import Config, PathLike, PositiveInt, check
from tencentpretrain.data.shard_format import TARGET_TOKENIZER
from tencentpretrain.errors import CheckpointError, before_start
from tencentpretrain.tools.outputs import (
    SECTIONS,
    check_directory,
    model_files,
    model_fingerprints,
    model_sections,
    write_model,
)
from tencentpretrain.train.base import model_tensors
from tencentpretrain.train.finetune import TASK_FILE
from tencentpretrain.train.saved_checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    open_checkpoint,
    step_directories,
)
from tencentpretrain.train.source import TOKENIZER

log = logging.getLogger("tencentpretrain")


class AverageConfig(Config):
    """Average the weights of checkpoints."""

    checkpoints: list[PathLike] = []
    """Run directories, of which the best checkpoint is taken, or checkpoints."""
    run_dir: PathLike | None = None
    """One run whose newest checkpoints are averaged, in the place of checkpoints."""
    last: PositiveInt | None = None
    """How many of the newest checkpoints of run_dir are averaged; null takes all."""
    output: PathLike
    """Directory to make; init and checkpoint accept it."""
    overwrite: bool = False
    """Whether a model at output may be replaced."""

    @check("checkpoints", "run_dir", "last")
    def _one_source(self) -> str | None:
        if (self.run_dir is None) == (not self.checkpoints):
            return "either checkpoints or run_dir must be given"
        if self.run_dir is None and self.last is not None:
            return "last needs run_dir"
        return None


def run_average(config: AverageConfig) -> int:
    """Average as `config` says; returns the exit code."""
    with before_start():
        found = _checkpoints(config)
        check_directory(config.output, config.overwrite, [c.path for c in found])
        check_alike(found)
        newest = max(found, key=lambda checkpoint: checkpoint.step)
        files, sections = model_files(newest), model_sections(newest)
    tensors = mean_tensors(map(model_tensors, found))
    fingerprints = model_fingerprints(newest)
    write_model(config.output, tensors, sections, files, newest.step, fingerprints)
    log.info(f"the mean of {len(found)} checkpoints is in {config.output}")
    return 0


def _checkpoints(config: AverageConfig) -> list[Checkpoint]:
    if config.run_dir is None:
        paths: Sequence[Path] = config.checkpoints
    else:
        open_checkpoint(config.run_dir)  # says what is wrong with a directory that is no run
        paths = step_directories(config.run_dir / CHECKPOINTS)
        if config.last is not None and len(paths) < config.last:
            raise CheckpointError(
                f"`{config.run_dir}` has {len(paths)} checkpoints, fewer than last={config.last}; "
                "a run keeps more with checkpoint.keep_last"
            )
        paths = paths[: config.last]
    found = [open_checkpoint(path) for path in paths]
    if len({checkpoint.path.resolve() for checkpoint in found}) < 2:
        raise CheckpointError("at least two different checkpoints are needed for a mean")
    return found


def check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints whose weights do not mean the same.

    Raises:
        CheckpointError: naming the first part that differs from the first checkpoint.
    """
    first = checkpoints[0]
    wanted = _identity(first)
    for other in checkpoints[1:]:
        for part, value in _identity(other).items():
            if value != wanted.get(part):
                raise CheckpointError(
                    f"`{other.path}` has another {part} than `{first.path}`; only checkpoints of "
                    "one model can be averaged"
                )


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What must be equal, by how a message calls it."""
    sections = model_sections(checkpoint)
    files = {name: record.checksum for name, record in checkpoint.manifest.files.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in model_tensors(checkpoint).items()}
    parts: dict[str, Any] = {f"config of the {n}": sections.get(n) for n in SECTIONS}
    tokenizers = (TOKENIZER, TARGET_TOKENIZER)
    parts["tokenizer"] = {n: c for n, c in files.items() if n.partition("/")[0] in tokenizers}
    parts["set of labels"] = files.get(TASK_FILE)
    parts["set of tensors"] = shapes
    return parts


def mean_tensors(sources: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The running mean in fp32 of tensors by name, in the type that they have.

    One source at a time is read. Tensors of whole numbers, such as counters, are the last ones.
    """
    means: dict[str, Tensor] = {}
    types: dict[str, torch.dtype] = {}
    for count, tensors in enumerate(sources, start=1):
        for name, tensor in tensors.items():
            types[name] = tensor.dtype
            if not tensor.is_floating_point():
                means[name] = tensor
            elif name in means:
                means[name] += (tensor.float() - means[name]) / count
            else:
                means[name] = tensor.to(torch.float32, copy=True)
    return {name: mean.to(types[name]) for name, mean in means.items()}
