"""What tools write: nothing is lost, and nothing half-written is left."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tencentpretrain.config import ConfigError
from tencentpretrain.errors import CheckpointError
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.train.base import BASE
from tencentpretrain.train.checkpoint_files import Source, fill_checkpoint
from tencentpretrain.train.durable import (
    DurableFile,
    delete,
    make_directory,
    publish,
    sync_directory,
    temporary_name,
)
from tencentpretrain.train.manifest import MANIFEST, Manifest
from tencentpretrain.train.saved_checkpoint import STATE, Checkpoint
from tencentpretrain.train.source import CONFIG, TOKENIZER, saved_config
from tencentpretrain.train.tensor_file import SUFFIX
from tencentpretrain.yaml_text import dump_yaml

SECTIONS: Final = ("model", "wrappers", "task")
"""What of the config of a run belongs to its model; the rest is about one training."""
STEP_NAME: Final = re.compile(r"step_\d{8,}")
STATE_FILES: Final = {STATE, f"optimizer{SUFFIX}"}
"""Files of a checkpoint that only the continuation of training reads."""
KEPT_FINGERPRINTS: Final = ("tokenizer", "target tokenizer")
"""What a model depends on; the rest is about one training."""


def check_file(
    output: Path, overwrite: bool, inputs: Iterable[Path] = (), key: str = "output"
) -> None:
    """Refuse to lose a file.

    Raises:
        ConfigError: if the output is there already, is read too, or cannot be written.
    """
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise ConfigError.at(key, f"must be another file than what is read, but is `{output}`")
    if output.is_dir():
        raise ConfigError.at(key, f"must be a file, but `{output}` is a directory")
    if output.exists() and not overwrite:
        message = f"`{output}` exists; choose another name, or replace it with overwrite=true"
        raise ConfigError.at(key, message)
    folder = output.absolute().parent
    if not folder.is_dir():
        raise ConfigError.at(key, f"must be in a folder that exists, but `{folder}` does not")
    if not os.access(folder, os.W_OK):
        raise ConfigError.at(key, f"must be in a folder that can be written to: `{folder}`")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file that is whole or not there at all.

    Raises:
        OSError: if it cannot be written; what was there stays.
    """
    partial = path.with_name(temporary_name(path.name))
    try:
        with DurableFile(partial) as file:
            for line in lines:
                file.write(line.encode())
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise
    sync_directory(path.absolute().parent)


def check_directory(output: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse to lose a directory.

    Raises:
        ConfigError: if something is there that is no model, or may not be replaced.
    """
    if STEP_NAME.fullmatch(output.name):
        message = f"must not be called like a checkpoint of a run, but is `{output}`"
        raise ConfigError.at("output", message)
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise ConfigError.at("output", f"must not be what is read, but is `{output}`")
    require_replaceable("output", output, overwrite)


def require_replaceable(
    key: str,
    output: Path,
    overwrite: bool,
    kind: str = "model",
    marks: Iterable[str] = (MANIFEST,),
) -> None:
    """Refuse to lose what the directory that `key` names holds.

    Args:
        key: Says where `output` is.
        output: The directory; there may be nothing.
        overwrite: Whether one that holds a `kind` may be replaced.
        kind: What is written there.
        marks: Files of which every directory with a `kind` has one.

    Raises:
        ConfigError: if something else is there, or may not be replaced.
    """
    if not os.path.lexists(output):
        return
    if not any((output / mark).is_file() for mark in marks):
        message = f"`{output}` exists and is no {kind}, so it is not replaced; choose another name"
        raise ConfigError.at(key, message)
    if not overwrite:
        message = f"`{output}` exists; choose another name, or replace the {kind} in it with "
        raise ConfigError.at(key, f"{message}overwrite=true")


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A temporary name for a file that gets its own when the block ends without an error."""
    partial = path.with_name(temporary_name(path.name))
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise


@contextmanager
def published_directory(output: Path) -> Iterator[Path]:
    """An empty directory that gets the name `output` when the block ends without an error.

    What was under that name before is replaced in one step; its parents are made.

    Raises:
        CheckpointError: if it cannot be written; what was there stays.
    """
    final = output.absolute()
    partial = final.with_name(temporary_name(final.name))
    try:
        make_directory(partial.parent)
        partial.mkdir()
        yield partial
        replaced = publish(partial, final)
    except BaseException as error:
        with suppress(OSError):
            delete(partial)
        if isinstance(error, OSError):
            raise CheckpointError(f"`{output}` cannot be written: {error.strerror}") from error
        raise
    if replaced is not None:
        delete(replaced)


def model_files(checkpoint: Checkpoint) -> dict[str, Source]:
    """Files that belong to the model in `checkpoint`, verified, without weights and config."""
    left_out = STATE_FILES | {CONFIG, BASE, f"model{SUFFIX}"}
    names = {name.partition("/")[0] for name in checkpoint.manifest.files}
    return {name: checkpoint.file(name) for name in sorted(names - left_out)}


def model_sections(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the config in `checkpoint` says about the model."""
    config = saved_config(checkpoint)
    return {name: config[name] for name in SECTIONS if name in config}


def model_fingerprints(checkpoint: Checkpoint) -> dict[str, str]:
    """What the model in `checkpoint` depends on."""
    found = checkpoint.manifest.fingerprints
    return {name: found[name] for name in KEPT_FINGERPRINTS if name in found}


def write_model(
    output: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    files: Mapping[str, Source],
    step: int = 0,
    fingerprints: Mapping[str, str] | None = None,
) -> None:
    """Write a directory that `init` and `checkpoint` accept: a checkpoint without its training.

    What was under the name before is replaced in one step (see `check_directory`).

    Args:
        output: the directory; its parents are made.
        tensors: weights by name.
        config: plain data with the section "model".
        files: further files and directories by name, such as the tokenizer.
        step: training steps that the weights have seen.
        fingerprints: such as that of the tokenizer.

    Raises:
        CheckpointError: if it cannot be written; what was there stays.
    """
    manifest = Manifest(
        step=step,
        torch_version=str(torch.__version__),
        fingerprints=dict(fingerprints or {}),
        files={},
    )
    members = {CONFIG: dump_yaml(dict(config)).encode(), **files}
    with published_directory(output) as partial:
        fill_checkpoint(partial, manifest, {"model": tensors}, members)


@contextmanager
def saved_beside(tokenizer: Tokenizer) -> Iterator[dict[str, Source]]:
    """The files of `tokenizer` for `write_model`."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / TOKENIZER
        tokenizer.save(directory)
        yield {TOKENIZER: directory}
