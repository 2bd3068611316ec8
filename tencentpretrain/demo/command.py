"""The demonstration as a command.

`python -m tencentpretrain.demo.command` writes its table of keys for `--help`.
"""

from __future__ import annotations

import sys
from typing import Final

from tencentpretrain.commands import Command
from tencentpretrain.help import table_file

DEMO: Final = Command(
    name="demo",
    script="python scripts/demo.py",
    summary="Show what the toolkit does, from a corpus to predictions, on text of your own Python.",
    config="tencentpretrain.demo.run:DemoConfig",
    run="tencentpretrain.demo.run:run_demo",
    examples=("output=demo", "output=demo overwrite=true"),
)


def help_table() -> str:
    """The keys of the demonstration, as `--help` shows them."""
    from tencentpretrain.help_table import key_table  # imports every component

    return key_table(DEMO.config_class())


if __name__ == "__main__":
    table_file(DEMO).write_text(help_table(), encoding="utf-8")
    sys.exit()
