"""The demonstration as a command."""

from __future__ import annotations

from typing import Final

from tencentpretrain.commands import Command

DEMO: Final = Command(
    name="demo",
    script="python scripts/demo.py",
    summary="Show what the toolkit does, from a corpus to predictions, on text of your own Python.",
    config="tencentpretrain.demo.run:DemoConfig",
    run="tencentpretrain.demo.run:run_demo",
    examples=("", "output=/tmp/demo", "overwrite=true"),
)
