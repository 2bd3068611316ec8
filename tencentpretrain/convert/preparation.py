"""How images and sounds are prepared, as `transformers` keeps it beside a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.report import Report
from tencentpretrain.convert.weights import read_json
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.source import merge

PREPROCESSOR: Final = "preprocessor_config.json"
PROCESSOR: Final = "processor_config.json"
"""What newer versions keep it in, together with other things."""
TRANSFORM: Final = "transform"
KINDS: Final = (TRANSFORM, "bank")
"""Keys of our objectives that say how images and sounds are prepared."""
SECTIONS: Final = ("feature_extractor", "image_processor")
"""Keys of that file."""


class PreparationError(CheckpointError):
    """A file asks for what no objective here does.

    Args:
        message: What that is.
        nearest: Keys of our objective that say the rest of the file.
    """

    def __init__(self, message: str, nearest: Mapping[str, Any]) -> None:
        self.nearest = nearest
        super().__init__(message)


@dataclass(frozen=True)
class Preparation:
    """What an objective knows of preparing inputs, and how a file of theirs says it.

    Args:
        to_ours: Keys of our objective out of the content of the file.
        to_theirs: Content of the file out of plain data of our objective.
    """

    to_ours: Callable[[Settings], dict[str, Any]]
    to_theirs: Callable[[Mapping[str, Any]], dict[str, Any]]


def prepared(
    preparation: Preparation, content: Mapping[str, Any], objective: Any, report: Report
) -> Any:
    """Plain data of `objective` with what a file says about preparing inputs.

    What the objective cannot do of it is no reason to refuse a model; it becomes a remark.

    Args:
        preparation: Of the family.
        content: Of the file.
        objective: What is known without it; None where no objective makes such inputs.
        report: Gets the remark.
    """
    problem: str | None = None
    told: Mapping[str, Any] = {}
    try:
        told = preparation.to_ours(Settings(content))
    except CheckpointError as error:
        told = error.nearest if isinstance(error, PreparationError) else {}
        problem = str(error)
    if objective is None:
        problem = problem or "no objective here makes the inputs of such a model"
        report.remarks.append(f"the preparation of inputs is not kept ({dict(told)}): {problem}")
        return None
    transform, own = told.get(TRANSFORM), objective.get(TRANSFORM)
    if transform and transform.get("size", own["size"]) != own["size"]:
        problem = (
            f"{PREPROCESSOR}: images are {transform['size']}, but the model reads {own['size']}"
        )
        left_out = ("size", "resize")
        told = {TRANSFORM: {k: v for k, v in transform.items() if k not in left_out}}
    objective = merge(objective, told)
    if problem is not None:
        kept = next(
            f"model.objective.{name} is {objective[name]}" for name in KINDS if name in objective
        )
        report.remarks.append(f"{problem}; {kept}: give keys of it where that is not near enough")
    return objective


def read_preparation(folder: Path) -> dict[str, Any] | None:
    """What a folder of theirs says about preparing inputs; None where it says nothing."""
    if (folder / PREPROCESSOR).is_file():
        return read_json(folder / PREPROCESSOR)
    content = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    return next((content[name] for name in SECTIONS if isinstance(content.get(name), dict)), None)


def preparation_file(content: Mapping[str, Any]) -> dict[str, bytes]:
    """The file that says so, by its name."""
    return {PREPROCESSOR: (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()}
