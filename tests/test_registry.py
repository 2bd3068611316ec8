import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tencentpretrain import registry
from tencentpretrain.config import ComponentConfig
from tencentpretrain.registry import Registry, load_plugins, trust

PLUGIN = """
from tencentpretrain.config import ComponentConfig
from tests.test_registry import SHAPES


@SHAPES.register("star_of_plugin")
class Star:
    class Config(ComponentConfig):
        points: int = 5

    def __init__(self, config):
        self.points = config.points


class Bare:
    pass
"""

SHAPES: Registry[object] = Registry("shape", "tests")


@SHAPES.register("circle")
class Circle:
    class Config(ComponentConfig):
        radius: int = 1

    def __init__(self, config: Config, factor: int = 1) -> None:
        self.radius = config.radius * factor


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An importable package that nobody trusts yet."""
    name = "plugin_with_a_star"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "TRUSTED", set())
    monkeypatch.setattr(SHAPES, "_classes", dict(SHAPES._classes))
    yield name
    sys.modules.pop(name, None)


def test_a_component_is_built_from_its_config() -> None:
    built = SHAPES.build(Circle.Config(name="circle", radius=3), factor=2)
    assert isinstance(built, Circle)
    assert built.radius == 6
    assert list(SHAPES) == ["circle"]


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(KeyError, match="there is no shape `cirle`; did you mean `circle`"):
        SHAPES.get("cirle")


def test_a_name_cannot_be_taken_twice() -> None:
    class Other:
        pass

    with pytest.raises(ValueError, match="shape `circle` is registered twice"):
        SHAPES.register("circle")(Other)
    assert SHAPES.get("circle") is Circle


def test_a_dotted_name_needs_trust(plugin: str) -> None:
    with pytest.raises(PermissionError, match=rf"allow it with `plugins=\[{plugin}\]`"):
        SHAPES.get(f"{plugin}:Star")
    assert plugin not in sys.modules, "code outside the toolkit must not even be imported"
    trust([f"{plugin}.sub"])
    assert SHAPES.get(f"{plugin}:Star").__name__ == "Star"


def test_trust_is_for_a_package_not_for_a_beginning(plugin: str) -> None:
    trust([plugin[:-1]])
    with pytest.raises(PermissionError):
        SHAPES.get(f"{plugin}:Star")


@pytest.mark.parametrize("name", ["Nothing", "Star.Nothing"])
def test_a_dotted_name_that_leads_nowhere(plugin: str, name: str) -> None:
    trust([plugin])
    with pytest.raises(KeyError, match="cannot be imported"):
        SHAPES.get(f"{plugin}:{name}")


def test_a_class_without_config_is_named(plugin: str) -> None:
    trust([plugin])
    with pytest.raises(KeyError, match=r"`.*:Bare` must have a nested `Config"):
        SHAPES.config_class(f"{plugin}:Bare")


def test_a_plugin_registers_short_names(plugin: str) -> None:
    load_plugins([plugin])
    assert "star_of_plugin" in list(SHAPES)
    assert SHAPES.config_class("star_of_plugin")().model_dump()["points"] == 5
    assert plugin in registry.TRUSTED


def test_a_missing_plugin_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="no_such_plugin"):
        load_plugins(["no_such_plugin"])
