"""The text of `--help`.

Keys are explained by the docstrings of the configs, which lie in modules that import torch. Help
must not wait for that, so `python -m tencentpretrain.help --write` keeps the table of keys in
`conf/help/<command>.txt`, and a test fails while a table is older than the configs. Models and
groups are listed from the files that are there.
"""

from __future__ import annotations

import platform
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tencentpretrain.commands import COMMANDS, Command
from tencentpretrain.compose import CONF, group_options, groups
from tencentpretrain.model_files import ENVIRONMENT, families

WRITE = "python -m tencentpretrain.help --write"

FLAGS = """\
Flags
  -h, --help       this text
  --cfg [job]      print the whole configuration, defaults included, and do nothing else
  -m, --multirun   run all combinations of values such as optim.lr=1e-4,3e-4 or seed=range(1,4)
  --version        print versions"""

WORDS = """\
Words
  key=value        set a key: numbers, true, false, null, text, [a,b], {a: 1}, ${oc.env:HOME}
  group=option     choose a file of a group; a path to your own YAML file is an option too
  ~key             remove a key that a file sets, so that its default holds
  plugins=[a,b]    import packages that register components of your own"""

EXIT_CODES = """\
Exit codes
  0 done   1 failure while running   2 refused before starting
  130 and 143 ended by Ctrl-C and SIGTERM; a run that saves has saved"""


def help_text(command: Command) -> str:
    """Everything that a user of `command` can type."""
    parts = [
        command.summary,
        f"Usage: {command.script} [flags] key=value ...",
        "\n".join(["Examples", *(f"  {command.script} {line}" for line in command.examples)]),
        FLAGS,
        WORDS,
        *_choices(command),
        _keys(command),
        EXIT_CODES,
    ]
    return "\n\n".join(parts)


def version_text() -> str:
    """Versions of the toolkit and of what its results depend on."""
    python, torch = platform.python_version(), version("torch")
    return f"tencentpretrain {_own_version()} (Python {python}, torch {torch})"


def _own_version() -> str:
    try:
        return version("tencentpretrain")
    except PackageNotFoundError:  # used from a checkout
        project = tomllib.loads((CONF.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])


def _choices(command: Command) -> list[str]:
    """Models by family, and the options of every group."""
    parts: list[str] = []
    names = groups(command.name)
    if "model" in names:
        sizes = families(group_options("model"))
        rows = [(family or "(no family)", " ".join(sizes[family])) for family in sizes]
        title = f"Models (model=family/size; more in ./models or the folder in {ENVIRONMENT})"
        parts.append("\n".join([title, *_columns(rows)]))
    rows = [
        (f"{group}={option}", _comment(group, option))
        for group in names
        if group != "model"
        for option in group_options(group)
    ]
    return [*parts, "\n".join(["Groups", *_columns(rows)])] if rows else parts


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(left) for left, _ in rows), default=0)
    return [f"  {left:<{width}}  {right}".rstrip() for left, right in rows]


def _comment(group: str, option: str) -> str:
    first = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def _keys(command: Command) -> str:
    file = table_file(command)
    if not file.is_file():
        return f"Keys\n  (not written yet: {WRITE})"
    return file.read_text(encoding="utf-8").rstrip("\n")


def table_file(command: Command) -> Path:
    """Where the table of keys of `command` is kept."""
    return CONF / "help" / f"{command.name}.txt"


def main(argv: Sequence[str]) -> int:
    """Write the tables of all commands."""
    if list(argv) != ["--write"]:
        print(f"usage: {WRITE}", file=sys.stderr)
        return 2
    from tencentpretrain.help_table import key_table  # imports every component

    for command in COMMANDS.values():
        file = table_file(command)
        file.parent.mkdir(exist_ok=True)
        file.write_text(key_table(command.config_class()), encoding="utf-8")
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
