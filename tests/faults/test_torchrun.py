"""Processes that torchrun starts, ended by a signal as schedulers send it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tencentpretrain.train.saved_checkpoint import find_latest
from tests.helpers.pretraining import words_of, write_shards

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 25
"""Seconds that a scheduler grants, in many places, between SIGTERM and SIGKILL."""


def start(
    words: list[str], output: Path, script: str = "pretrain.py", *options: str
) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options]
    command = [*launcher, "--nproc-per-node", "2", script, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with output.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, stderr=file, stdout=file, env=environment, start_new_session=True
        )


def wait_for(text: str, output: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run says `text`."""
    for _ in range(600):
        if text in output.read_text() or process.poll() is not None:
            break
        time.sleep(0.2)
    assert text in output.read_text(), output.read_text()


def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    shards, run = write_shards(tmp_path / "data"), tmp_path / "run"
    keys = {"trainer.steps": 100_000, "trainer.eval_every": 100_000, "checkpoint.every": 100_000}
    words = [*words_of(shards, run, **keys), "parallel=ddp"]
    output = tmp_path / "output.txt"
    process = start(words, output)
    try:
        wait_for("step 3/", output, process)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        seconds = time.monotonic() - asked
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = output.read_text()
    assert "stopped by SIGTERM" in said, said
    # The only traceback is that of torchrun, which has no other way to say that it was ended.
    assert "tencentpretrain/" not in said, said
    assert seconds < PATIENCE
    found = find_latest(run / "checkpoints")
    assert found is not None
    assert found.step >= 3
    assert f"stopped by SIGTERM at step {found.step}" in said


DYING = """
import os, signal, sys
from tencentpretrain.cli import main
from tencentpretrain.train.trainer import Trainer

step = Trainer.train_step

def dying(trainer, micros):
    if trainer.step == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, micros)

if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    Trainer.train_step = dying
sys.exit(main("pretrain"))
"""


def test_torchrun_starts_again_what_has_died(tmp_path: Path) -> None:
    """Over the same store, which has all that those before have left there."""
    shards, run = write_shards(tmp_path / "data"), tmp_path / "run"
    words = words_of(shards, run, **{"trainer.steps": 5, "checkpoint.every": 2})
    (tmp_path / "dying.py").write_text(DYING)
    output, script = tmp_path / "output.txt", str(tmp_path / "dying.py")
    process = start([*words, "parallel=ddp"], output, script, "--max-restarts", "1")
    try:
        process.wait(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = output.read_text()
    assert process.returncode == 0, said
    assert f"continuing {run} from step 2" in said
    assert "finished at step 5" in said
