"""How images and sounds are prepared, as `transformers` keeps it beside a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.weights import read_json
from tencentpretrain.errors import CheckpointError

PREPROCESSOR: Final = "preprocessor_config.json"
PROCESSOR: Final = "processor_config.json"
"""What newer versions keep it in, together with other things."""
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


def read_preparation(folder: Path) -> dict[str, Any] | None:
    """What a folder of theirs says about preparing inputs; None where it says nothing."""
    if (folder / PREPROCESSOR).is_file():
        return read_json(folder / PREPROCESSOR)
    content = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    return next((content[name] for name in SECTIONS if isinstance(content.get(name), dict)), None)


def preparation_file(content: Mapping[str, Any]) -> dict[str, bytes]:
    """The file that says so, by its name."""
    return {PREPROCESSOR: (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()}
