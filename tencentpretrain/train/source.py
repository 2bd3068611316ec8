"""Where a fine-tuning run takes its model config and tokenizer from, and how it changes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tencentpretrain.config import ComponentConfig, ConfigError, Problem, decode, nearest
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import ModelConfig
from tencentpretrain.targets.base import TARGETS
from tencentpretrain.tasks.base import Task
from tencentpretrain.tokenizers.base import Tokenizer, build_tokenizer, load_tokenizer
from tencentpretrain.train.saved_checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    open_checkpoint,
    sound_checkpoints,
)
from tencentpretrain.yaml_text import load_yaml

CONFIG = "config.yaml"
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Source:
    """What a model is before a task changes it.

    Args:
        model: Plain data of its config, as far as it is not given on the command line.
        tokenizer: Its tokenizer; None where it has none.
    """

    model: dict[str, Any]
    tokenizer: Tokenizer | None


def find_source(init: str, run_dir: Path, tokenizer: ComponentConfig | None) -> Source:
    """The source of a run in `run_dir` that starts from `init`.

    A run that is continued is its own source, so that nobody needs to keep what it started from.

    Raises:
        CheckpointError: if there is no usable checkpoint.
        DataError: if the tokenizer cannot be used.
    """
    if init == "none":
        return Source({}, None if tokenizer is None else build_tokenizer(tokenizer))
    own = sound_checkpoints(run_dir / CHECKPOINTS)
    checkpoint = own[0] if own else open_checkpoint(Path(init))
    model = saved_config(checkpoint).get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"`{checkpoint.path}` is not of a model: its config has none")
    return Source(model, saved_tokenizer(checkpoint))


def saved_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Plain data of the config of the run that wrote `checkpoint`."""
    return load_yaml(checkpoint.file(CONFIG))


def saved_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer in `checkpoint`; None where its model needs none."""
    if not (checkpoint.path / TOKENIZER).exists():
        return None
    return load_tokenizer(checkpoint.file(TOKENIZER))


def task_model(
    task: Task[Any, Any], source: Mapping[str, Any], overrides: Mapping[str, Any]
) -> ModelConfig:
    """The model of `source` with `overrides` merged over it and the heads of `task` as targets.

    Raises:
        ConfigError: with every mistake in `overrides`, or if the model cannot do the task.
    """
    rest = without_heads(overrides, task.heads)
    if source:
        _refuse_pretraining(task, rest)
    before = decode(ModelConfig, merge(source, rest), "model")
    heads = task.targets(before)
    ties = {
        replaced: kept
        for replaced, kept in before.ties.items()
        if not f"{replaced} {kept}".count("target.")
    }
    given = overrides.get("target") or {}
    plain = {
        **before.to_dict(),
        "target": {n: _head(c.to_dict(), given.get(n) or {}) for n, c in heads.items()},
        "objective": None,
        "ties": ties | task.ties(before),
    }
    return decode(ModelConfig, plain, "model")


def _head(head: dict[str, Any], given: Any) -> Any:
    """Plain data of a `head` with what is `given` of it; a target around it has it as inner one."""
    name = str(given.get("name")) if isinstance(given, Mapping) else ""
    # What is no target is found when the model is decoded.
    if name not in [*TARGETS] or "inner" not in TARGETS.config_class(name).model_fields:
        return merge(head, given)
    return {**given, "inner": merge(head, given.get("inner") or {})}


def without_heads(model: Mapping[str, Any], heads: Sequence[str]) -> dict[str, Any]:
    """Plain data of a `model` without those targets that are `heads` of a task."""
    targets = model.get("target")
    if not isinstance(targets, Mapping):
        return dict(model)
    return {**model, "target": {name: c for name, c in targets.items() if name not in heads}}


def _refuse_pretraining(task: Task[Any, Any], overrides: Mapping[str, Any]) -> None:
    """What is for pre-training would change nothing, so it must not be given."""
    targets = overrides.get("target") or {}
    if not isinstance(targets, Mapping):
        raise ConfigError.at("model.target", f"must be a group of keys, but is {targets!r}")
    problems = [
        Problem(
            f"model.target.{name}",
            f"is not a target of task={task.name}; {nearest(str(name), task.heads)}",
        )
        for name in targets
    ]
    if overrides.get("objective") is not None:
        message = "is for pre-training; leave it out, and model=... too: the model comes with init"
        problems.append(Problem("model.objective", message))
    if problems:
        raise ConfigError(problems)


def merge(base: Any, over: Any) -> Any:
    """Plain data `base` with `over` merged over it, key by key."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merge(base[key], value) if key in base else value
    return merged
