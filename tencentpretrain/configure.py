"""From the words of a command line to a typed config, with everything that is wrong at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from tencentpretrain.commands import Command
from tencentpretrain.compose import Composed, compose, groups, missing_model
from tencentpretrain.config import Config, ConfigError, Problem, decode
from tencentpretrain.registry import load_plugins, trust

DOTTED_NAME: Final = re.compile(r"([A-Za-z_]\w*)(\.[A-Za-z_]\w*)*:[A-Za-z_][\w.]*")
REQUIRED_MODEL: Final = ("model: is required", "model is required")


def load_config(command: Command, words: Sequence[str]) -> Config:
    """The typed config that `words` mean, after loading the plug-ins that they name.

    Raises:
        ConfigError: with all mistakes: of the words, of the files and of the values.
    """
    composed = compose(command.name, words)
    problems = list(composed.problems)
    _load_user_code(composed)
    cls = command.config_class()
    if "plugins" not in cls.model_fields:
        composed.data.pop("plugins", None)
    _open_sections(command, cls, composed.data)
    try:
        config = decode(cls, composed.data)
    except ConfigError as error:
        # What the words got wrong already must not be told again as missing.
        faulty = [problem.path for problem in composed.problems if problem.path]
        problems += [
            problem
            for problem in error.problems
            if not any(_is_within(problem.path, key) for key in faulty)
        ]
    if problems:
        raise ConfigError(_hinted(problem, composed) for problem in problems)
    return config


def _open_sections(command: Command, cls: type[Config], data: dict[str, Any]) -> None:
    """Begin what must be given and no group chooses, so that it says itself which keys it needs."""
    for name, field in cls.model_fields.items():
        section = isinstance(field.annotation, type) and issubclass(field.annotation, Config)
        if section and field.is_required() and name not in groups(command.name):
            data.setdefault(name, {})


def _is_within(path: str, key: str) -> bool:
    return path == key or path.startswith(f"{key}.")


def _hinted(problem: Problem, composed: Composed) -> Problem:
    """`problem` with the way out that only the command line knows."""
    message = problem.message
    if "model" not in composed.data and str(problem).startswith(REQUIRED_MODEL):
        message = f"{message}; {missing_model()}"
    elif any(_is_within(problem.path, key) for key in composed.several):
        message = f"{message}; several values to try one after another need the flag -m"
    return Problem(problem.path, message)


def _load_user_code(composed: Composed) -> None:
    """Import plug-ins and allow the dotted names that the user's own words and files hold."""
    plugins = composed.data.get("plugins") or []
    plugins = [plugins] if isinstance(plugins, str) else plugins
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        message = f"must be a list of packages such as [my_package], but is {plugins!r}"
        raise ConfigError.at("plugins", message)
    if "plugins" in composed.data:
        composed.data["plugins"] = plugins
    trust(_packages(composed.data))
    try:
        load_plugins(plugins)
    except ImportError as error:
        message = f"cannot be imported: {error}; its folder must be on PYTHONPATH or installed"
        raise ConfigError.at("plugins", message) from error


def _packages(node: Any) -> Iterator[str]:
    """Packages of all texts in `node` that look like `package.module:Class`."""
    if isinstance(node, str):
        match = DOTTED_NAME.fullmatch(node)
        if match:
            yield match.group(1)
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _packages(key)
            yield from _packages(value)
    elif isinstance(node, list):
        for value in node:
            yield from _packages(value)
