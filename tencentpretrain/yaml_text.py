"""YAML as people read it: only `true` and `false` are booleans, `1e-4` is a number.

PyYAML follows YAML 1.1, where `no` is False, `1e-4` is text, `010` is eight, `12:30` is 750 and
`2024-01-01` is a date. Here all of these are what they look like, and no key is given twice.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tencentpretrain.config import ConfigError

TAG = "tag:yaml.org,2002:"
RESOLVERS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key `{key.value}` is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be read as something else, by this reader or by one of YAML 1.1."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in RESOLVERS.items():
    for _class in (_Loader, _Dumper):
        _first_characters = [character.strip("\0") for character in _first]
        _class.add_implicit_resolver(
            TAG + _name, re.compile(f"^(?:{_pattern})$"), _first_characters
        )


def parse_yaml(text: str, source: str = "the value") -> Any:
    """Plain data from YAML `text`.

    Raises:
        ConfigError: if it is not YAML, with the line in `source`.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError.at("", f"{source}{line}: is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError.at("", f"{source}: is not YAML: {error}") from error


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping that the YAML file `path` holds; an empty file is an empty mapping.

    Raises:
        ConfigError: if it cannot be read, is not YAML or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        message = f"{path}: is not UTF-8 text (byte {error.start})"
        raise ConfigError.at("", message) from error
    except OSError as error:
        raise ConfigError.at("", f"{path}: cannot be read: {error.strerror}") from error
    data = parse_yaml(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError.at("", f"{path}: must hold keys and values, but holds {data!r:.50}")
    return {str(key): value for key, value in data.items()}


def dump_yaml(data: object) -> str:
    """YAML text of plain data, in the given order of keys, that `load_yaml` reads back equal."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
