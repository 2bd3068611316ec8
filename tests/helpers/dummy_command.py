"""A command that needs no torch, for tests of the command line."""

import json
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

from tencentpretrain.commands import Command
from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    PathLike,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
)
from tencentpretrain.errors import DataError, TrainingError, before_start
from tencentpretrain.registry import Registry

OPTIMIZERS: Registry[object] = Registry("optimiser", "tests.helpers.dummy_command")


@OPTIMIZERS.register("adamw")
class AdamW:
    """Adam."""

    class Config(ComponentConfig):
        lr: PositiveFloat = 1e-3
        """Rate."""


@OPTIMIZERS.register("sgd")
class Sgd:
    """Plain."""

    class Config(ComponentConfig):
        lr: PositiveFloat = 1e-2
        """Rate."""
        momentum: PositiveFloat = 0.9
        """Memory."""


class DummyConfig(Config):
    run_dir: PathLike
    """Directory to write."""
    model: dict[str, Any]
    """The model."""
    mode: Literal["ok", "fail", "refuse", "crash", "full", "wait"] = "ok"
    """What to do."""
    steps: PositiveInt = 1
    """Length."""
    text: str = ""
    """Any text."""
    optim: Annotated[SerializeAsAny[ComponentConfig], Choice(OPTIMIZERS)]
    """Optimiser."""
    schedule: dict[str, Any] = {}
    """Unused."""
    parallel: dict[str, Any] = {}
    """Unused."""
    wrappers: dict[str, Any] = {}
    """Unused."""


def run_dummy(config: DummyConfig) -> int:
    with before_start():
        if config.mode == "refuse":
            raise DataError("the corpus is empty; give one with text")
    if config.mode == "fail":
        raise TrainingError("the loss is not finite")
    if config.mode == "crash":
        raise ZeroDivisionError("a defect")
    if config.mode == "full":
        raise OSError(28, "No space left on device", "model.bin")
    config.run_dir.mkdir(parents=True)
    records = [{"step": step, "eval/loss": 1 / (step + config.steps)} for step in (1, 2)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (config.run_dir / "metrics.jsonl").write_text(lines + '{"step": 3, "eval/lo')
    return wait_for_signal(config.run_dir) if config.mode == "wait" else 0


def wait_for_signal(directory: Path) -> int:
    """As a run that saves when it is interrupted."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    (directory / "started").touch()
    while not received:
        time.sleep(0.02)
    (directory / "saved").touch()
    return 128 + received[0]


DUMMY = Command(
    name="pretrain",
    script="python dummy.py",
    summary="Do nothing.",
    config="tests.helpers.dummy_command:DummyConfig",
    run="tests.helpers.dummy_command:run_dummy",
    examples=("model=bert/tiny run_dir=runs/a",),
    result="run_dir",
)
