"""Mistakes in a configuration, and the sentences about them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo

from tencentpretrain.type_names import alternatives_of, type_name


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration: the dotted path of the key and a sentence about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(ValueError):
    """All mistakes of one configuration, so that they can be mended in one go."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def at(cls, path: str, message: str) -> ConfigError:
        return cls([Problem(path, message)])


def nearest(name: str, names: Iterable[str]) -> str:
    """Say which of `names` was probably meant, and list them where there are few."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"valid are: {listed}" if names else "there are none"


def nothing_at(path: Path, folders_only: bool = False) -> str:
    """Say that there is nothing at `path`, and what beside it was probably meant.

    Args:
        path: Where nothing is.
        folders_only: Whether only a folder can have been meant.
    """
    parent = path.parent
    if not parent.is_dir():
        return f"does not exist, nor does the folder {parent}"
    beside = [other for other in parent.iterdir() if other.is_dir() or not folders_only]
    names = [other.name for other in beside if not other.name.startswith(".")]
    return f"does not exist; {nearest(path.name, names)}"


_BOUNDS: Final = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}


def sentence(item: Any) -> str:
    """Say what is required and what was given, for one `item` of a pydantic ValidationError."""
    kind, given, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "missing":
        return "is required, but was not given"
    if kind == "value_error":
        reason = str(context["error"])
        is_told = item["loc"] == () or repr(given) in reason or str(given) in reason
        return reason if is_told else reason + but_is(given)
    if kind in _BOUNDS:
        sign, limit = _BOUNDS[kind]
        return f"must be {sign} {context[limit]}{but_is(given)}"
    if kind == "literal_error":
        options = str(context["expected"]).replace("'", "")
        hint = nearest(str(given), options.replace(" or ", ", ").split(", "))
        return f"must be one of {options}{but_is(given)}; {hint}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a group of keys{but_is(given)}"
    message = re.sub(r"^.*? (?:should|is not) ", "", str(item["msg"])).split(", unable")[0]
    message = f"be {message}" if kind == "path_type" else message
    return f"must {message.split(' for <')[0]}{but_is(given)}"


def but_is(given: object) -> str:
    text = repr(given)
    return f", but is {text if len(text) <= 100 else text[:97] + '...'}"


def field_problems(
    field: FieldInfo | None, given: object, items: list[Any], path: str
) -> list[Problem]:
    """What a pydantic ValidationError says in `items` about one field of the config at `path`."""
    members = set() if field is None else set(map(type_name, alternatives_of(field.annotation)))
    if field is not None and len(members - {"null"}) > 1 and items[0]["type"] != "missing":
        # There is an item for each member of the union: say once what all of them are.
        where = ".".join([path, str(items[0]["loc"][0])]).strip(".")
        reasons = [sentence(item) for item in items if item["type"] == "value_error"]
        wanted = type_name(field.annotation, field.metadata)
        return [Problem(where, (reasons or [f"must be {wanted}{but_is(given)}"])[0])]
    return [
        Problem(".".join([path, *map(str, item["loc"])]).strip("."), sentence(item))
        for item in items
    ]
