"""Words of the command line: `key=value`, `group=option`, `~key`, and the values in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from tencentpretrain.config import ConfigError, Problem
from tencentpretrain.yaml_text import parse_yaml


@dataclass(frozen=True)
class Argument:
    """One word: `key=text`, or `~key` where `text` is None."""

    key: str
    text: str | None

    def __str__(self) -> str:
        return f"~{self.key}" if self.text is None else f"{self.key}={self.text}"


class _Float(float):
    """A number that remembers how it was written, because a path `1e3` is not `1000.0`."""

    text: str

    def __str__(self) -> str:
        return self.text


class _Int(int):
    """As `_Float`: the path `+7` is not `7`."""

    text: str

    def __str__(self) -> str:
        return self.text


def read_arguments(words: Sequence[str], problems: list[Problem]) -> list[Argument]:
    """Take `words` apart; what is wrong with them is added to `problems`."""
    found: dict[str, Argument] = {}
    for word in words:
        argument = _read(word, problems)
        if argument is None:
            continue
        if argument.key in found:
            both = f"`{found[argument.key]}` and `{argument}`"
            problems.append(Problem(argument.key, f"must be given once, but is given by {both}"))
        found.setdefault(argument.key, argument)
    return list(found.values())


def _read(word: str, problems: list[Problem]) -> Argument | None:
    key, sign, text = word.partition("=")
    if key.startswith("-"):
        problems.append(Problem("", f"`{word}` is not a known flag; keys are given as key=value"))
    elif key.startswith("~"):
        if not sign and key != "~":
            return Argument(key[1:], None)
        problems.append(Problem("", f"`{word}` must be ~key, which removes a key"))
    elif not sign:
        problems.append(Problem("", f"`{word}` must be key=value, but has no `=`"))
    elif not all(key.lstrip("+").split(".")):
        problems.append(Problem("", f"`{word}` must be key=value, but `{key}` is not a key"))
    else:
        return Argument(key.lstrip("+"), text)
    return None


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _parse(text: str) -> Override | None:
    """What Hydra reads in `text`; None if that is against its grammar."""
    try:
        return _parser().parse_override(f"key={text}")
    except HydraException:
        return None


def is_sweep(text: str) -> bool:
    """Whether `text` means several values where `-m` is given."""
    override = _parse(text)
    return override is not None and override.is_sweep_override()


def parse_value(text: str) -> Any:
    """The value that `text` means: Hydra's reading, or the text itself where it has none.

    Paths hold what Hydra's grammar refuses: parentheses, `=`, quotes, letters beyond ASCII. Two
    values with a comma between them are one text without `-m`. Numbers remember their spelling.
    """
    override = _parse(text)
    if override is None:
        return _bracketed(text) if text[:1] in ("[", "{") else text
    if override.is_sweep_override():
        return text
    value: Any = override.value()
    if type(value) in (int, float) and str(value) != text:
        number = _Float(value) if isinstance(value, float) else _Int(value)
        number.text = text
        return number
    return value


def _bracketed(text: str) -> Any:
    """A list or mapping in YAML, which allows what Hydra refuses in it; else the text itself."""
    try:
        return parse_yaml(text)
    except ConfigError:
        return text  # a path such as [draft].txt


def spelled(value: Any) -> bool:
    """Whether `value` is a number that remembers its spelling."""
    return isinstance(value, _Float | _Int)


def plain(value: Any) -> Any:
    """The builtin number of a number that remembers its spelling, else `value`."""
    if isinstance(value, _Float):
        return float(value)
    return int(value) if isinstance(value, _Int) else value


def alternatives(text: str, options: Sequence[str]) -> list[str]:
    """The texts that `text` means with `-m`.

    Args:
        text: Such as `1,2`, `range(1,4)`, `choice(a,b)`, `glob(bert/*)`, or one value.
        options: What a glob chooses from.

    Raises:
        ValueError: if `text` means infinitely many values, or none.
    """
    override = _parse(text)
    if override is None and text[:1] in ("[", "{", "'", '"'):
        return [text]
    if override is None or not set(text) & set("[{('\"\\"):
        # Plain words keep their spelling; Hydra would refuse some and write 1e-4 as 0.0001.
        return [part.strip() for part in text.split(",")]
    if not override.is_sweep_override():
        return [text]
    value: object = override.value()
    if isinstance(value, Glob):
        found = value.filter(list(options))
    elif override.is_discrete_sweep():
        found = list(override.sweep_string_iterator())
    else:
        raise ValueError("must be a list of values such as 1,2 or range(1,4), not an interval")
    if not found:
        raise ValueError("means no value at all")
    return found
