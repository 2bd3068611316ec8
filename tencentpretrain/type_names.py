"""Types in the words of a user: `int > 0 or null`, `a|b`, `list of path`."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel

NAMES = {str: "text", Path: "path", bool: "true|false", type(None): "null", Any: "any"}
BOUNDS = (
    (annotated_types.Gt, ">", "gt"),
    (annotated_types.Ge, ">=", "ge"),
    (annotated_types.Lt, "<", "lt"),
    (annotated_types.Le, "<=", "le"),
)


def type_name(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """`annotation` with its bounds; `metadata` is what a pydantic field keeps apart from it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0], [*arguments[1:], *metadata])
    bounds = _bounds(metadata)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(type_name, arguments))) + bounds
    if origin is Literal:
        return "|".join(str(option) for option in arguments)
    if origin is dict:
        return f"{{{type_name(arguments[0])}: {type_name(arguments[1])}}}"
    if origin in (list, tuple, set, frozenset, Sequence):
        inner = dict.fromkeys(type_name(part) for part in arguments if part is not Ellipsis)
        return f"list of {', '.join(inner)}{bounds}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group of keys"
    name = NAMES.get(annotation) or getattr(annotation, "__name__", str(annotation))
    return f"{name}{bounds}"


def _bounds(metadata: Sequence[Any]) -> str:
    """` > 0` and the like; constraints may lie inside a pydantic `Field`."""
    signs: list[str] = []
    for item in metadata:
        for part in getattr(item, "metadata", None) or [item]:
            for kind, sign, attribute in BOUNDS:
                if isinstance(part, kind):
                    signs.append(f" {sign} {getattr(part, attribute)}")
    return "".join(signs)


def alternatives_of(annotation: Any) -> list[Any]:
    """The types that a union is made of, however nested; of any other type, that type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return alternatives_of(arguments[0])
    if origin in (Union, types.UnionType):
        return [part for argument in arguments for part in alternatives_of(argument)]
    return [annotation]
