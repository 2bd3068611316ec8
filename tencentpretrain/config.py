"""Typed configuration: plain data in, frozen objects out, all mistakes reported together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Protocol, TypeVar, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from tencentpretrain.problems import ConfigError, Problem, but_is, field_problems, nearest
from tencentpretrain.type_names import alternatives_of, type_name

__all__ = [
    "Choice",
    "ComponentConfig",
    "Config",
    "ConfigError",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PathLike",
    "PositiveFloat",
    "PositiveInt",
    "Probability",
    "Problem",
    "SerializeAsAny",
    "check",
    "decode",
    "nearest",
]

C = TypeVar("C", bound="Config")
INVALID: Final = object()
Check = Callable[[Any], str | None]


def _path(value: object) -> object:
    """A path of digits is read as a number; `~` is nobody's folder name."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value == "":
        raise ValueError("must be a path, but is empty")
    return Path(value).expanduser() if isinstance(value, str) else value


Probability = Annotated[float, Field(ge=0, lt=1)]
PathLike = Annotated[Path, BeforeValidator(_path)]


def check(*fields: str) -> Callable[[Check], Check]:
    """Mark a method of a config that returns what is contradictory between `fields`, or None.

    It runs once those fields are valid by themselves, whatever is wrong elsewhere.
    """

    def mark(function: Check) -> Check:
        function.checked_fields = fields  # type: ignore[attr-defined]
        return function

    return mark


class Config(BaseModel):
    """Base of all configs: frozen, unknown keys refused, keys explained by attribute docstrings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        coerce_numbers_to_str=True,
    )
    _checks: ClassVar[tuple[Check, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        members: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            members |= vars(base)
        cls._checks = tuple(m for _, m in sorted(members.items()) if hasattr(m, "checked_fields"))

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        found = self.contradictions(set(type(self).model_fields))
        if found:
            raise ValueError("; ".join(found))
        return self

    def contradictions(self, valid: set[str]) -> list[str]:
        """Messages of the checks whose fields are all in `valid`."""
        ready = [c for c in self._checks if valid.issuperset(c.checked_fields)]  # type: ignore[attr-defined]
        return [message for message in (c(self) for c in ready) if message]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `decode` turns into an equal config."""
        return self.model_dump(mode="json")


class ComponentConfig(Config):
    """Config of a registered component; `name` chooses its class."""

    name: str = ""
    """Registered short name of the component, or `package.module:Class`."""


class Components(Protocol):
    """What a registry offers to the decoder."""

    kind: str

    def config_class(self, name: str) -> type[ComponentConfig]: ...
    def __iter__(self) -> Any: ...


@dataclass(frozen=True)
class Choice:
    """Annotation of a field whose class is chosen by `name` in a registry.

    Use `Annotated[SerializeAsAny[ComponentConfig], Choice(ENCODERS)]`, or the same as the item
    type of a list, or as the value type of a dictionary, where a key is the name unless its value
    has one, and a list of names stands for components with all their defaults.
    """

    registry: Components
    default: str | None = None


def decode(cls: type[C], data: Mapping[str, Any], path: str = "") -> C:
    """Turn plain data into a `cls`.

    Raises:
        ConfigError: with every unknown key, wrong type, value out of range and contradiction.
    """
    problems: list[Problem] = []
    value = _decode(cls, data, path, problems)
    if problems:
        raise ConfigError(problems)
    return cast(C, value)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _decode(cls: type[Config], data: object, path: str, problems: list[Problem]) -> Any:
    """A `cls`, which is sound even where `data` has unknown keys beside; else INVALID."""
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        problems.append(Problem(path, f"must be a group of keys{but_is(data)}"))
        return INVALID
    values: dict[str, Any] = {}
    invalid: set[str] = set()
    for key, value in data.items():
        field = cls.model_fields.get(str(key))
        if field is None:
            hint = _hint(cls, str(key))
            problems.append(Problem(_join(path, key), f"is not a known key; {hint}"))
            continue
        values[str(key)] = _nested(field, value, _join(path, key), problems)
        if values[str(key)] is INVALID:
            invalid.add(str(key))
    return _validate(cls, values, invalid, path, problems)


def _hint(cls: type[Config], key: str) -> str:
    """The same key one level further in, or else the one that is spelled most like it."""
    inner = {
        name: member.model_fields
        for name, field in cls.model_fields.items()
        for member in alternatives_of(field.annotation)
        if isinstance(member, type) and issubclass(member, Config)
    }
    found = [f"`{name}.{key}`" for name, fields in inner.items() if key in fields]
    return f"did you mean {' or '.join(found)}?" if found else nearest(key, cls.model_fields)


def _validate(
    cls: type[Config], values: dict[str, Any], invalid: set[str], path: str, problems: list[Problem]
) -> Any:
    """Validate one level whose nested configs are decoded, except for the `invalid` ones."""
    valid = {name: value for name, value in values.items() if name not in invalid}
    found: dict[str, list[Any]] = {}
    try:
        config = cls.model_validate(valid)
        if not invalid:
            return config
    except ValidationError as error:
        for item in error.errors():
            found.setdefault(str(item["loc"][0]) if item["loc"] else "", []).append(item)
    if invalid:
        found.pop("", None)  # the checks saw defaults there; those that can be are run below
    for name, items in found.items():
        if name not in invalid:
            problems += field_problems(cls.model_fields.get(name), values.get(name), items, path)
    if "" in found:
        return INVALID  # all fields are sound, but contradict each other
    return _check_partially(cls, values, invalid | found.keys(), path, problems)


def _check_partially(
    cls: type[Config], values: dict[str, Any], invalid: set[str], path: str, problems: list[Problem]
) -> Any:
    """Run the checks between fields that are sound, although others are not."""
    sound = {}
    for name, field in cls.model_fields.items():
        if name in values and name not in invalid:
            sound[name] = _converted(cls, field, values[name])
        elif name not in values and not field.is_required():
            sound[name] = _converted(cls, field, field.get_default(call_default_factory=True))
    partial = cls.model_construct(**sound)
    problems += [Problem(path, message) for message in partial.contradictions(set(sound))]
    return INVALID


def _converted(cls: type[Config], field: FieldInfo, value: Any) -> Any:
    """`value`, known to be valid, as the field would hold it: a text such as `1e-4` as a number."""
    held = [value, *value.values()] if isinstance(value, dict) else [value]
    if any(isinstance(item, Config) for item in held):
        return value
    annotation = field.rebuild_annotation()
    if any(isinstance(t, type) and issubclass(t, BaseModel) for t in alternatives_of(annotation)):
        return TypeAdapter(annotation).validate_python(value)
    return TypeAdapter(annotation, config=cls.model_config).validate_python(value)


def _nested(field: FieldInfo, value: Any, path: str, problems: list[Problem]) -> Any:
    """Decode `value` as far as it holds configs; leaves are left to pydantic."""
    annotation = field.annotation
    inner = [item for part in get_args(annotation) for item in getattr(part, "__metadata__", ())]
    is_container = get_origin(annotation) in (dict, list)
    choice = _choice_in(field.metadata if is_container else [*field.metadata, *inner])
    if choice is not None:
        return None if value is None else _choose(choice, value, path, problems)
    if is_container:
        # The only way for a command line to empty a mapping that a file has filled.
        emptied = value is None and get_origin(annotation) is dict
        return _container(annotation, {} if emptied else value, path, problems)
    members = alternatives_of(annotation)
    for member in members:
        if isinstance(member, type) and issubclass(member, Config) and value is not None:
            return _decode(member, value, path, problems)
    if isinstance(value, bool) and bool not in members and {int, float}.intersection(members):
        # pydantic would count True as 1.
        message = f"must be {type_name(annotation, field.metadata)}{but_is(value)}"
        problems.append(Problem(path, message))
        return INVALID
    return value


def _choice_in(metadata: Iterable[Any]) -> Choice | None:
    return next((item for item in metadata if isinstance(item, Choice)), None)


def _container(annotation: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    """Decode the configs in a dictionary or list; other items are left to pydantic."""
    item = get_args(annotation)[-1] if get_args(annotation) else Any
    choice = _choice_in(getattr(item, "__metadata__", ()))
    nested = item if isinstance(item, type) and issubclass(item, Config) else None
    if choice is None and nested is None:
        return value
    if get_origin(annotation) is dict and isinstance(value, list):
        value = {str(name): {} for name in value}  # names alone: all components as they come
    decoded: dict[Any, Any] = {}
    for key, config in _items(value):
        where = _join(path, key)
        if choice is not None and config is not None:
            default = key if isinstance(key, str) else None
            decoded[key] = _choose(choice, config, where, problems, default)
        elif nested is not None:
            decoded[key] = _decode(nested, config, where, problems)
    if not isinstance(value, Mapping | list):
        return value
    if any(config is INVALID for config in decoded.values()):
        return INVALID
    return decoded if isinstance(value, Mapping) else list(decoded.values())


def _items(value: object) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _choose(
    choice: Choice, value: Any, path: str, problems: list[Problem], default: str | None = None
) -> Any:
    if isinstance(value, ComponentConfig):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        problems.append(Problem(path, f"must be a group of keys{but_is(value)}"))
        return INVALID
    name = value.get("name") or default or choice.default
    if not isinstance(name, str):
        problems.append(
            Problem(_join(path, "name"), f"is required; {nearest('', choice.registry)}")
        )
        return INVALID
    try:
        cls = choice.registry.config_class(name)
    except (KeyError, PermissionError) as error:
        # What was written is a `name`, or else the key of the component itself.
        where = _join(path, "name") if value.get("name") else path
        problems.append(Problem(where, str(error.args[0])))
        return INVALID
    return _decode(cls, {**value, "name": name}, path, problems)
