"""What accompanies training, such as a frozen teacher: no part of the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import torch

from tencentpretrain.data.loader import Examples
from tencentpretrain.sizes import Patches
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.train.callbacks.base import Callback
from tencentpretrain.types import Batch

T = TypeVar("T")
HELPERS: Final = "target.*.features.*"
"""Pattern of the names of weights that only training with a companion needs."""


def without_companions(model: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of a `model` whose targets are what they were around: all that is kept of it."""
    targets = {
        name: (keys["inner"] or {"name": name}) if "inner" in keys else keys
        for name, keys in (model.get("target") or {}).items()
    }
    return {**model, "target": targets}


def without_helpers(tensors: Mapping[str, T]) -> dict[str, T]:
    """Weights without those that only training with a companion needs."""
    return {name: tensor for name, tensor in tensors.items() if not fnmatchcase(name, HELPERS)}


@dataclass(frozen=True)
class Setting:
    """What a target may know of the run that trains it.

    Args:
        device: Of the model.
        dtype: Of matrix products.
        examples: To train on.
        samples: How many of them the run draws, those drawn again included.
        is_mixed: Whether they are drawn from several sources.
        tokenizer: Saved with the model; None where it reads no text.
        target_tokenizer: Of what a decoder writes, where it is another one.
        files: Further files of every checkpoint by name, such as what a task learned.
        outputs: Rows of the output layers over vocabularies, by the name of the target.
        patches: What the model's embedding cuts images into; None where it reads none.
        shared: What the targets of a model may have in common, by keys of their own.
    """

    device: torch.device
    dtype: torch.dtype
    examples: Examples
    samples: int
    is_mixed: bool = False
    tokenizer: Tokenizer | None = None
    target_tokenizer: Tokenizer | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)
    patches: Patches | None = None
    shared: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Companion:
    """What a target, or the examples, bring to a run.

    Args:
        annotate: Adds to each batch before the forward pass.
        examples: To train on instead of those of the setting: the same with more in their batches.
        fingerprints: Of what it depends on, by name; a continued run must find the same.
        callback: Does what a step needs besides.
    """

    annotate: Callable[[Batch], Batch] | None = None
    examples: Examples | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    callback: Callback | None = None


class Completion(ABC):
    """An annotator without which nothing can read a batch, so that evaluation asks it, too."""

    @abstractmethod
    def __call__(self, batch: Batch) -> Batch:
        """`batch` with what is missing in it; nothing of it has a gradient."""


@runtime_checkable
class Accompanied(Protocol):
    """What may bring a companion: targets and examples."""

    def companion(self, setting: Setting) -> Companion | None: ...
