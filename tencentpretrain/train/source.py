"""Where a fine-tuning run takes its model config and tokenizer from, and how it changes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tencentpretrain.config import ComponentConfig, ConfigError, Problem, decode, nearest
from tencentpretrain.data.objectives import OBJECTIVES
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
TASK_FILE = "task.json"


@dataclass(frozen=True)
class Source:
    """What a model is before a task changes it.

    Args:
        model: Plain data of its config, as far as it is not given on the command line.
        tokenizer: Its tokenizer; None where it has none.
        learned: What it learned for a task, if it was fine-tuned.
    """

    model: dict[str, Any]
    tokenizer: Tokenizer | None
    learned: Mapping[str, Any] = field(default_factory=dict)


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
    # The weights are verified when they are loaded.
    checkpoint = own[0] if own else open_checkpoint(Path(init), verify=False)
    model = saved_config(checkpoint).get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"`{checkpoint.path}` is not of a model: its config has none")
    return Source(model, saved_tokenizer(checkpoint), saved_task(checkpoint))


def saved_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Plain data of the config of the run that wrote `checkpoint`."""
    return load_yaml(checkpoint.file(CONFIG))


def saved_task(checkpoint: Checkpoint) -> dict[str, Any]:
    """What was learned for a task; nothing where the model was not fine-tuned.

    Raises:
        CheckpointError: if it is damaged.
    """
    if TASK_FILE not in checkpoint.manifest.files:
        return {}
    try:
        learned: dict[str, Any] = json.loads(checkpoint.file(TASK_FILE).read_bytes())
    except ValueError as error:
        raise CheckpointError(f"`{checkpoint.path}/{TASK_FILE}` is damaged: {error!r}") from error
    return learned


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
    # An objective may not fit what a task changes, such as the size of images.
    before = decode(ModelConfig, {**merge(source, rest), "objective": None}, "model")
    before = before.model_copy(update={"objective": _objective(source or rest)})
    heads = task.targets(before)
    left_out = ("target", *task.unused)
    ties = {
        replaced: kept
        for replaced, kept in before.ties.items()
        if not {replaced.split(".")[0], kept.split(".")[0]} & {*left_out}
    }
    given = overrides.get("target") or {}
    if not source:
        given = {name: _without(head, task.decided) for name, head in given.items()}
    plain = {
        **before.to_dict(),
        **dict.fromkeys(task.unused),
        "target": {n: _head(c.to_dict(), given.get(n) or {}) for n, c in heads.items()},
        "objective": None,
        "ties": ties | task.ties(before),
    }
    return decode(ModelConfig, plain, "model")


def _objective(source: Mapping[str, Any]) -> ComponentConfig | None:
    """What a model was pre-trained on, which may tell a task how its inputs are prepared."""
    plain = source.get("objective")
    if not isinstance(plain, Mapping):
        return None
    return decode(OBJECTIVES.config_class(plain["name"]), plain, "model.objective")


def _without(head: Any, keys: Sequence[str]) -> Any:
    if not isinstance(head, Mapping):
        return head
    return {key: value for key, value in head.items() if key not in keys}


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
