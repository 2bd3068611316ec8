"""Components by short name, and the ways in which user code may join them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from tencentpretrain.config import ComponentConfig, nearest

T = TypeVar("T")
Class = TypeVar("Class", bound=type)

TRUSTED: set[str] = set()
"""Packages whose classes `package.module:Class` may name; filled from the user's own words only."""


class Registry(Generic[T]):
    """Classes of one kind by name. Each has a nested `Config`, a `ComponentConfig`.

    Args:
        kind: what the classes are, for messages, such as "encoder".
        package: package whose modules register the built-in classes; imported on first use.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._classes: dict[str, type[Any]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Class], Class]:
        """Class decorator; `name` must be new."""

        def add(cls: Class) -> Class:
            if name in self._classes and self._classes[name].__qualname__ != cls.__qualname__:
                raise ValueError(f"{self.kind} `{name}` is registered twice")
            self._classes[name] = cls
            return cls

        return add

    def get(self, name: str) -> type[T]:
        """The class called `name`, a short name or `package.module:Class`.

        Raises:
            KeyError: if there is none; the message has the nearest name.
            PermissionError: if the package of a dotted name was not trusted by the user.
        """
        self._load()
        if name in self._classes:
            return self._classes[name]
        if ":" in name:
            return self._import(name)
        raise KeyError(f"there is no {self.kind} `{name}`; {nearest(name, self._classes)}")

    def build(self, config: ComponentConfig, *args: Any, **kwargs: Any) -> T:
        """Construct the component that `config` names."""
        cls: Any = self.get(config.name)
        component: T = cls(config, *args, **kwargs)
        return component

    def config_class(self, name: str) -> type[ComponentConfig]:
        """The nested `Config` of the class called `name`.

        Raises:
            KeyError: as `get`, and if the class has no `Config`.
            PermissionError: as `get`.
        """
        cls = getattr(self.get(name), "Config", None)
        if isinstance(cls, type) and issubclass(cls, ComponentConfig):
            return cls
        raise KeyError(f"{self.kind} `{name}` must have a nested `Config(ComponentConfig)`")

    def default(self, name: str) -> ComponentConfig:
        """Config of `name` with nothing but defaults."""
        return self.config_class(name)(name=name)

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._classes))

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            importlib.import_module(self._package)

    def _import(self, name: str) -> type[T]:
        module, _, qualname = name.partition(":")
        if module.split(".")[0] not in TRUSTED:
            raise PermissionError(
                f"{self.kind} `{name}` is code outside the toolkit, named by a file; "
                f"allow it with `plugins=[{module.split('.')[0]}]` on the command line"
            )
        try:
            found: Any = importlib.import_module(module)
            for part in qualname.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise KeyError(f"{self.kind} `{name}` cannot be imported: {error}") from error
        cls: type[T] = found
        return cls


def trust(packages: Iterable[str]) -> None:
    """Allow dotted component names from `packages`."""
    TRUSTED.update(package.split(".")[0] for package in packages)


def load_plugins(packages: Iterable[str]) -> None:
    """Import `packages` and the entry points `tencentpretrain.plugins`, which register classes.

    Raises:
        ImportError: if a package is not importable.
    """
    for package in packages:
        trust([package])
        importlib.import_module(package)
    for entry in entry_points(group="tencentpretrain.plugins"):
        entry.load()
