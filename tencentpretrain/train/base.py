"""Checkpoints that hold what training has changed, and refer to another one for the rest.

Adapters are small beside the model that they adapt. Their runs save them alone, with a `base.json`
that says which checkpoint has the other weights: where it lies, and the checksum of its manifest,
which covers every byte of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import ValidationError
from torch import Tensor

from tencentpretrain.config import Choice, ComponentConfig, Config, SerializeAsAny, decode
from tencentpretrain.data.checksum import file_checksum
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.manifest import MANIFEST, from_json, to_json
from tencentpretrain.train.saved_checkpoint import Checkpoint, open_checkpoint
from tencentpretrain.train.source import CONFIG, saved_config
from tencentpretrain.wrappers.base import WRAPPERS, Wrapper, build_wrappers

BASE: Final = "base.json"


class Base(Config):
    """Where the weights lie that a checkpoint does not hold itself."""

    path: str
    """Absolute path of the checkpoint that has them."""
    relative: str
    """Its path from the folder in which the checkpoint without them lies."""
    fingerprint: str
    """Checksum of its manifest."""
    names: list[str]
    """Names of the tensors that are to be taken from it."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, names: Iterable[str], folder: Path) -> Base:
        """A reference to `checkpoint` for what will lie in `folder`."""
        path = checkpoint.path.absolute()
        return cls(
            path=str(path),
            relative=os.path.relpath(path, folder.absolute()),
            fingerprint=file_checksum(path / MANIFEST),
            names=sorted(names),
        )

    def to_bytes(self) -> bytes:
        """Text of `base.json`."""
        return to_json(self.to_dict())


class SavedWrappers(Config):
    """What the config of a run says about the changes to its model."""

    wrappers: dict[str, Annotated[SerializeAsAny[ComponentConfig], Choice(WRAPPERS)]] = {}
    """Changes to the built model, by name."""


def base_of(checkpoint: Checkpoint) -> Base | None:
    """What `checkpoint` refers to; None if it holds all of its model.

    Raises:
        CheckpointError: if its reference cannot be read.
    """
    if BASE not in checkpoint.manifest.files:
        return None
    try:
        return Base.model_validate(from_json(checkpoint.file(BASE).read_bytes()))
    except (ValueError, ValidationError) as error:
        raise CheckpointError(f"`{checkpoint.path}/{BASE}` is no reference: {error}") from error


def open_base(checkpoint: Checkpoint, base: Base, moved: Path | None = None) -> Checkpoint:
    """The checkpoint that `base` of `checkpoint` means.

    Args:
        checkpoint: What refers to it.
        base: How.
        moved: Where it lies now, a checkpoint or a run directory, if it was moved.

    Raises:
        CheckpointError: if it is not there, or is another one by now.
    """
    places = [Path(base.path), checkpoint.path.absolute().parent / base.relative]
    if moved is not None:
        places = [open_checkpoint(moved).path]
    there = [place for place in places if (place / MANIFEST).is_file()]
    way = "give its new place as base=... to scripts/merge_adapter.py, which makes a model of both"
    if not there:
        raise CheckpointError(
            f"`{checkpoint.path}` holds an adapter only, and its base `{places[0]}` is not there; "
            f"put it back, or {way}"
        )
    found = next((p for p in there if file_checksum(p / MANIFEST) == base.fingerprint), None)
    if found is None:
        raise CheckpointError(
            f"`{checkpoint.path}` holds an adapter only, and `{there[0]}` is not the base that it "
            f"was trained on; put that one back, or {way}"
        )
    return Checkpoint(found)


def model_tensors(checkpoint: Checkpoint, moved: Path | None = None) -> Mapping[str, Tensor]:
    """Weights of the model of `checkpoint` with its wrappers, those of its base included.

    Where it has all of them, they are read when they are looked up.

    Args:
        checkpoint: What is asked for.
        moved: Where its base lies now, if it was moved.

    Raises:
        CheckpointError: if a file is damaged, or the base is not what it was.
    """
    own = checkpoint.lazy_tensors("model")
    base = base_of(checkpoint)
    if base is None:
        return own
    others = plain_tensors(open_base(checkpoint, base, moved))
    absent = [name for name in base.names if name not in others]
    if absent:
        raise CheckpointError(f"the base of `{checkpoint.path}` has no tensor `{absent[0]}`")
    return {name: others[name] for name in base.names} | dict(own)


def plain_tensors(checkpoint: Checkpoint, moved: Path | None = None) -> Mapping[str, Tensor]:
    """Weights of the model of `checkpoint` without its wrappers: adapters are folded in.

    Raises:
        CheckpointError: as `model_tensors`.
        ConfigError: if its config names code that is not trusted.
    """
    tensors = model_tensors(checkpoint, moved=moved)
    for wrapper in reversed(saved_wrappers(checkpoint)):
        tensors = wrapper.fold(tensors)
    return tensors


def saved_wrappers(checkpoint: Checkpoint) -> list[Wrapper]:
    """The wrappers of the run that wrote `checkpoint`, in the order in which they were applied."""
    if CONFIG not in checkpoint.manifest.files:
        return []
    given = saved_config(checkpoint).get("wrappers") or {}
    return build_wrappers(decode(SavedWrappers, {"wrappers": given}).wrappers)
