"""From the words of a command line to plain data, by Hydra's Compose API.

`@hydra.main` is not used, so that Hydra makes no directories and logs of its own and exit codes
are ours. Groups go to Hydra; dotted keys are set afterwards whether a YAML file lists them or not,
so that typed decoding meets every misspelt key and can name the nearest right one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tencentpretrain.arguments import (
    Argument,
    is_sweep,
    parse_value,
    plain,
    read_arguments,
    spelled,
)
from tencentpretrain.config import ConfigError, Problem, nearest
from tencentpretrain.model_files import (
    find_model,
    list_families,
    load_inherited,
    model_folders,
    model_names,
)
from tencentpretrain.yaml_text import load_yaml

CONF: Final = Path(__file__).resolve().parent / "conf"
CHOSEN: Final = "_chosen"
"""Name under which Hydra gets to know a file that lies outside `conf`."""


@dataclass
class Composed:
    """Plain data for the decoder, and what was wrong on the way to it.

    Args:
        data: What `decode` takes, without the keys that `problems` are about.
        problems: Mistakes that did not keep the rest from being composed.
        several: Keys whose value is a list with commas, which only `-m` takes apart.
    """

    data: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    several: set[str] = field(default_factory=set)


def groups(command: str) -> dict[str, str | None]:
    """The groups that `command` takes, and the option of each where none is given."""
    defaults = load_yaml(CONF / f"{command}.yaml").get("defaults", [])
    return {
        str(group): option
        for entry in defaults
        if isinstance(entry, dict)
        for group, option in entry.items()
    }


def group_options(group: str) -> list[str]:
    """What can be chosen in `group`."""
    if group == "model":
        return model_names(model_folders())
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def compose(command: str, words: Sequence[str]) -> Composed:
    """Compose what `words` ask of `command`.

    Raises:
        ConfigError: if there is nothing to decode, for instance because a YAML file is broken.
    """
    result = Composed()
    known = groups(command)
    choices: list[str] = []
    values: list[Argument] = []
    for argument in read_arguments(words, result.problems):
        if argument.text is not None and is_sweep(argument.text):
            result.several.add(argument.key)
        is_choice = argument.key in known and (argument.text or "")[:1] not in ("{", "[")
        try:
            if not is_choice:
                values.append(argument)
            elif argument.text is None or parse_value(argument.text) is None:
                choices += [f"~{argument.key}"] if known[argument.key] else []
            elif (choice := _choose(argument.key, argument.text, values)) is not None:
                choices.append(choice)
        except ConfigError as error:
            result.problems += error.problems
    config = _compose(command, choices)
    numbers: list[tuple[str, Any]] = []
    # Whatever the order of the words, `a=sgd` says what component `a.momentum=0.9` is a key of.
    for argument in sorted(values, key=lambda argument: argument.key.count(".")):
        problem = _apply(argument, config, numbers)
        result.problems += [problem] if problem else []
    result.data = _resolve(config)
    for key, number in numbers:
        _respell(result.data, key, number)
    _clean(result.data, "", result.problems)
    return result


def _choose(group: str, text: str, values: list[Argument]) -> str | None:
    """Hydra's override for the choice of a group, or None if it became one of `values`."""
    option = str(parse_value(text))
    folders = model_folders() if group == "model" else [CONF / group]
    if option.endswith((".yaml", ".yml")):
        file = Path(option).expanduser()
        if not file.is_file():
            raise ConfigError.at(group, f"there is no file `{option}`")
    elif group == "model":
        file = find_model(option, folders)
    elif (CONF / group / f"{option}.yaml").is_file():
        return f"{group}={option}"
    else:
        # Maybe a component of a plug-in, which has no YAML file: its registry knows.
        named = json.dumps({option: {}} if _holds_several(group) else {"name": option})
        values.append(Argument(group, named))
        return None
    content = load_inherited(file.resolve(), folders)
    ConfigStore.instance().store(group=group, name=CHOSEN, node=content)
    return f"{group}={CHOSEN}"


def _holds_several(group: str) -> bool:
    """Whether a group is a mapping of components by name, as `wrappers`, and not one component."""
    return not any("name" in load_yaml(CONF / group / f"{o}.yaml") for o in group_options(group))


def _compose(command: str, choices: list[str]) -> DictConfig:
    try:
        with hydra.initialize_config_module("tencentpretrain.conf", version_base="1.3"):
            config = hydra.compose(command, choices)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError.at("", str(error).partition("\n")[0]) from error
    OmegaConf.set_struct(config, False)
    return config


def _apply(
    argument: Argument, config: DictConfig, numbers: list[tuple[str, Any]]
) -> Problem | None:
    """Set or remove one key of `config`."""
    key = argument.key
    if argument.text is None:
        return _remove(config, key)
    value = parse_value(argument.text)
    if spelled(value):
        numbers.append((key, value))
    try:
        _open_components(config, key)
        merges = isinstance(value, dict)  # a list of names takes the place of a group of keys
        OmegaConf.update(config, key, plain(value), merge=merges, force_add=True)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        return Problem(key, f"cannot be set to `{argument.text}`: {reason}")
    return None


def _open_components(config: DictConfig, key: str) -> None:
    """Write components that are given by name, and that `key` is a key of, as `{name: ...}`."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        chosen = OmegaConf.select(config, path)
        if isinstance(chosen, str):
            OmegaConf.update(config, path, {"name": chosen})


def _remove(config: DictConfig, key: str) -> Problem | None:
    path, _, last = key.rpartition(".")
    parent = OmegaConf.select(config, path) if path else config
    if isinstance(parent, DictConfig) and last in parent:
        del parent[last]
        return None
    names = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    hint = nearest(last, names)
    return Problem(key, f"cannot be removed, because no file or argument sets it; {hint}")


def _resolve(config: DictConfig) -> dict[str, Any]:
    try:
        data = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "")
        raise ConfigError.at(key, str(error).partition("\n")[0]) from error
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _respell(data: dict[str, Any], key: str, number: Any) -> None:
    """Put `number`, which remembers its spelling, where the plain one is."""
    *path, last = key.split(".")
    node: Any = data
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict) and node.get(last) == number:
        node[last] = number


def _clean(node: Any, path: str, problems: list[Problem]) -> None:
    """Drop `???`, so that decoding finds the key missing, and refuse `_target_`."""
    items = enumerate(node) if isinstance(node, list) else list(node.items())
    for key, value in items:
        where = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            message = (
                "is not supported: a config does not choose what code runs; "
                "name a component by `name: package.module:Class`"
            )
            problems.append(Problem(where, message))
        if key == "_target_" or (value == "???" and isinstance(node, dict)):
            del node[key]
        elif isinstance(value, dict | list):
            _clean(value, where, problems)


def missing_model() -> str:
    """What to choose from where no model was chosen."""
    names = list_families(group_options("model"))
    return f"model=family/size, or model=path to your own YAML file; there are {names}"
