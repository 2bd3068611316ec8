import importlib
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from tencentpretrain.commands import COMMANDS
from tencentpretrain.compose import group_options, groups
from tencentpretrain.config import Choice, ComponentConfig, Config, PathLike, SerializeAsAny
from tencentpretrain.help import WRITE, help_text, main, table_file
from tencentpretrain.help_table import UnexplainedKeyError, key_table
from tencentpretrain.registry import Registry
from tests.helpers.dummy_command import DUMMY

ROOT = Path(__file__).resolve().parents[1]
SHAPES: Registry[object] = Registry("shape", "tests")


@SHAPES.register("circle")
class Circle:
    """Round."""

    class Config(ComponentConfig):
        label: str = ""
        """Text on it."""
        radius: Annotated[float, Field(gt=0, lt=5)] = 1.5
        """From the middle."""


@SHAPES.register("square")
class Square:
    """Not round."""

    class Config(ComponentConfig):
        label: str = ""
        """Text on it."""
        side: int
        """From corner to corner."""


Shape = Annotated[SerializeAsAny[ComponentConfig], Choice(SHAPES)]


class Inner(Config):
    """Nested keys."""

    mode: Literal["a", "b"] | None = None
    """How it goes
    on."""


class Outer(Config):
    path: PathLike | list[PathLike]
    """Where."""
    inner: Inner = Inner()
    """Inside."""
    other: Inner | None = None
    """Inside too."""
    is_on: bool = True
    """Whether."""
    shape: Annotated[SerializeAsAny[ComponentConfig], Choice(SHAPES, "circle")]
    """Form."""
    shapes: dict[str, Shape] = {}
    """Forms."""


TABLE = """\
path | path or list of path | required | Where.
inner.mode | a|b or null | null | How it goes on.
other | group of keys or null | null | Inside too. Keys as in inner.
is_on | true|false | true | Whether.
shape.name | one of | circle | Form.
=circle | Round.
=square | Not round.
shape.label | text | '' | Text on it.
shape.radius | float > 0 < 5 | 1.5 | From the middle. (circle)
shape.side | int | required | From corner to corner. (square)
shapes.<name> | one of | {} | Forms. As in shape.name.
"""


def test_every_key_has_a_line() -> None:
    lines = key_table(Outer).splitlines()[1:]
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert [" | ".join(row) for row in cells] == TABLE.splitlines()


def test_a_key_or_component_without_a_docstring_is_an_error() -> None:
    class Silent(Config):
        told: int = 1
        """Told."""
        untold: int = 1

    with pytest.raises(UnexplainedKeyError, match="Silent: no docstring for untold"):
        key_table(Silent)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_written_table_is_up_to_date(name: str) -> None:
    command = COMMANDS[name]
    file = table_file(command)
    written = file.read_text(encoding="utf-8") if file.is_file() else ""
    fresh = key_table(command.config_class())
    assert written == fresh, f"{file.name} is older than the configs; run: {WRITE}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_tells_everything_that_can_be_typed(name: str) -> None:
    command = COMMANDS[name]
    text = help_text(command)
    assert text.startswith(command.summary)
    assert text.count(f"  {command.script} ") == 3
    assert "2 refused before starting" in text
    for group in groups(name):
        if group == "model":
            assert "  bert " in text
            assert " tiny mini small medium base large" in text
        else:
            assert all(f"{group}={option} " in text for option in group_options(group))


def test_models_are_listed_as_they_lie_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "own.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert "  mine " in help_text(DUMMY)


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from tencentpretrain.cli import main; code = main('pretrain', ['--help']);"
        "assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules; sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "\nKeys" in result.stdout


def test_writing_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("tencentpretrain.help")
    monkeypatch.setattr(module, "COMMANDS", {"dummy": DUMMY})
    monkeypatch.setattr(module, "table_file", lambda command: tmp_path / "help" / "dummy.txt")
    assert "(not written yet: python -m" in help_text(DUMMY)
    assert main(["--wrong"]) == 2
    assert not (tmp_path / "help").exists()
    assert main(["--write"]) == 0
    assert (tmp_path / "help" / "dummy.txt").read_text() == key_table(DUMMY.config_class())
    assert "  optim.lr " in help_text(DUMMY)
    assert "dummy.txt" in capsys.readouterr().out
