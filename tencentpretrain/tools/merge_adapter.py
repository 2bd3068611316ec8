"""An adapter and its base as one plain model: what `scripts/merge_adapter.py` does."""

from __future__ import annotations

import logging

from tencentpretrain.config import Config, PathLike
from tencentpretrain.errors import CheckpointError, before_start
from tencentpretrain.tools.outputs import (
    check_directory,
    model_files,
    model_sections,
    write_model,
)
from tencentpretrain.train.base import BASE, base_of, plain_tensors, saved_wrappers
from tencentpretrain.train.saved_checkpoint import Checkpoint, open_checkpoint
from tencentpretrain.wrappers.base import Wrapper

log = logging.getLogger("tencentpretrain")


class MergeAdapterConfig(Config):
    """Fold an adapter into the weights that it adapts."""

    checkpoint: PathLike
    """Run directory with an adapter, of which the best checkpoint is taken, or a checkpoint."""
    output: PathLike
    """Directory to make: a plain model that needs neither the base nor the wrapper."""
    base: PathLike | None = None
    """Where the base lies now, a run directory or checkpoint; null is where it was in training."""
    overwrite: bool = False
    """Whether a model at output may be replaced."""
    plugins: list[str] = []
    """Packages to import that register components of your own."""


def run_merge_adapter(config: MergeAdapterConfig) -> int:
    """Merge as `config` says; returns the exit code."""
    with before_start():
        checkpoint = open_checkpoint(config.checkpoint)
        inputs = [config.checkpoint, checkpoint.path, *([config.base] if config.base else [])]
        check_directory(config.output, config.overwrite, inputs)
        _check_foldable(checkpoint, config)
        tensors = plain_tensors(checkpoint, config.base)
        files = {n: f for n, f in model_files(checkpoint).items() if n != BASE}
        sections = {n: s for n, s in model_sections(checkpoint).items() if n != "wrappers"}
    fingerprints = checkpoint.manifest.fingerprints
    kept = {name: value for name, value in fingerprints.items() if name == "tokenizer"}
    write_model(config.output, tensors, sections, files, checkpoint.step, kept)
    log.info(f"{checkpoint.path} and its base are one model in {config.output}")
    return 0


def _check_foldable(checkpoint: Checkpoint, config: MergeAdapterConfig) -> None:
    """Refuse what has no adapter, and wrappers that cannot be folded in.

    Raises:
        CheckpointError: saying what it has instead.
    """
    wrappers = saved_wrappers(checkpoint)
    names = [wrapper.config.name for wrapper in wrappers]
    lasting = [w.config.name for w in wrappers if type(w).fold is Wrapper.fold]
    if not wrappers or lasting:
        what = f"the wrapper {lasting[0]}, which has no fold" if lasting else "no adapter"
        raise CheckpointError(
            f"`{checkpoint.path}` has {what}; give the run of an adapter such as wrappers=lora"
        )
    if config.base is not None and base_of(checkpoint) is None:
        raise CheckpointError(
            f"`{checkpoint.path}` ({', '.join(names)}) holds all of its model; leave base out"
        )
