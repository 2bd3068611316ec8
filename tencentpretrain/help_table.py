"""The table of keys in `--help`: a walk through the config classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import get_args, get_origin

from pydantic.fields import FieldInfo

from tencentpretrain.config import Choice, ComponentConfig, Config
from tencentpretrain.type_names import alternatives_of, type_name

KEY_WIDTH = 38
KIND_WIDTH = 22
DEFAULT_WIDTH = 9


class UnexplainedKeyError(Exception):
    """A key of a config, or a component that can be chosen, has no docstring."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        key: Dotted key, or the name of an option where `kind` is empty.
        kind: What its value is.
        default: What it is where nothing is given.
        meaning: Its docstring in one line.
        owners: The options that have this key; empty where all have it.
    """

    key: str
    kind: str
    default: str
    meaning: str
    owners: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.kind:
            return f"    ={self.key:<{KEY_WIDTH - 3}}  {self.meaning}".rstrip()
        columns = ((self.key, KEY_WIDTH), (self.kind, KIND_WIDTH), (self.default, DEFAULT_WIDTH))
        owners = f" ({', '.join(self.owners)})" if self.owners else ""
        return (
            "".join(f"  {text:<{width}}" for text, width in columns) + f"  {self.meaning}{owners}"
        )


@dataclass
class _Walk:
    """The walk; `places` remembers where configs and registries were explained already."""

    places: dict[object, str] = field(default_factory=dict)

    def rows(self, cls: type[Config], path: str) -> Iterator[Row]:
        """Rows of all keys of `cls` below `path`."""
        for name, info in cls.model_fields.items():
            if name == "name" and issubclass(cls, ComponentConfig):
                continue  # the row of the choice explains it
            key = f"{path}.{name}" if path else name
            choice, nested = _choice(info), _nested(info)
            if choice is not None:
                yield from self._choice_rows(key, info, choice)
            elif nested is not None and nested in self.places:
                yield _row(key, info, f"Keys as in {self.places[nested]}.")
            elif nested is not None:
                below = key
                if get_origin(info.annotation) is dict:
                    yield _row(key, info)
                    below = f"{key}.<name>"
                self.places[nested] = below
                yield from self.rows(nested, below)
            else:
                yield _row(key, info)

    def _choice_rows(self, key: str, info: FieldInfo, choice: Choice) -> Iterator[Row]:
        """The choice, its options, and the keys that they have."""
        is_many = get_origin(info.annotation) in (dict, list)
        below = f"{key}.<name>" if is_many else key
        named = below if is_many else f"{key}.name"
        default = _default(info) if choice.default is None else choice.default
        options = list(choice.registry)
        row = replace(_row(named, info), kind="one of", default=default)
        if choice.registry in self.places:
            yield replace(row, meaning=f"{row.meaning} As in {self.places[choice.registry]}.")
            return
        self.places[choice.registry] = named
        yield row if options else replace(row, kind="of a plug-in")
        for name in options:
            yield Row(name, "", "", _purpose(choice, name))
        yield from self._shared(choice, below)

    def _shared(self, choice: Choice, path: str) -> Iterator[Row]:
        """Every key of the options once, with the options that have it."""
        owners: dict[Row, list[str]] = {}
        options = list(choice.registry)
        for name in options:
            walk = _Walk(dict(self.places))  # a key that two options nest is explained by both
            for row in walk.rows(choice.registry.config_class(name), path):
                owners.setdefault(row, []).append(name)
        for row, names in owners.items():
            is_common = len(names) == len(options) or not row.kind
            yield row if is_common else replace(row, owners=row.owners or tuple(names))


def key_table(cls: type[Config]) -> str:
    """Explain every key of `cls` in one line: key, type, default, meaning.

    Raises:
        UnexplainedKeyError: if keys have no docstring; all of them are named.
    """
    rows = list(_Walk().rows(cls, ""))
    unexplained = [row.key for row in rows if not row.meaning]
    if unexplained:
        raise UnexplainedKeyError(f"{cls.__name__}: no docstring for {', '.join(unexplained)}")
    title = "Keys: type, default, meaning (and the options that have the key, if not all do)"
    return "\n".join([title, *map(str, rows)]) + "\n"


def _row(key: str, info: FieldInfo, addition: str = "") -> Row:
    meaning = " ".join([*(info.description or "").split(), *addition.split()])
    return Row(key, type_name(info.annotation, info.metadata), _default(info), meaning)


def _choice(info: FieldInfo) -> Choice | None:
    """The registry that a field, or each of its items, is chosen from."""
    inner = [getattr(argument, "__metadata__", ()) for argument in get_args(info.annotation)]
    found = (item for items in (info.metadata, *inner) for item in items)
    return next((item for item in found if isinstance(item, Choice)), None)


def _nested(info: FieldInfo) -> type[Config] | None:
    """The config that a field is, or that the items of a dictionary are."""
    is_named = get_origin(info.annotation) is dict
    for option in alternatives_of(get_args(info.annotation)[1] if is_named else info.annotation):
        if isinstance(option, type) and issubclass(option, Config):
            return option
    return None


def _purpose(choice: Choice, name: str) -> str:
    """First line of the docstring of a component."""
    get = getattr(choice.registry, "get", None)
    lines = (get(name).__doc__ or "").strip().splitlines() if get else []
    return lines[0] if lines else ""


def _default(info: FieldInfo) -> str:
    """The default as a user would type it."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "null"
    if isinstance(value, ComponentConfig):
        return value.name
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ",".join(map(str, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(map(str, value)) + "}"
    return str(value) or "''"
