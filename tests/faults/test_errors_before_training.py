"""What one process meets before training is told once, by name, and all end with its exit code."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.distributed import board, mesh
from tencentpretrain.distributed.mesh import Mesh
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train import beginning, pretrain
from tests.helpers.launch import launch, messages
from tests.helpers.pretraining import words_of, write_shards

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"trainer.steps": 1, "trainer.precision": "fp32", "parallel.timeout": 20}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def run(
    folder: Path,
    shards: Path,
    before: Callable[[int], None],
    *words: str,
    **keys: object,
) -> tuple[list[int], dict[str, str]]:
    """Exit codes of two processes and what they have said."""
    given = [*words_of(shards, folder / "run", **{**KEYS, **keys}), "parallel=ddp", *words]
    codes = launch(folder / "log", 2, given, before=before)
    assert not (folder / "run").exists()
    return codes, messages(folder / "log")


@pytest.mark.parametrize("victim", [0, 1])
def test_data_that_one_process_does_not_see(
    victim: int, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hide(rank: int) -> None:
        if rank == victim:
            os.chdir(tmp_path)

    monkeypatch.chdir(shards.parent)
    codes, said = run(tmp_path, Path(shards.name), hide)
    assert codes == [2, 2]
    who = "error: " if victim == 0 else "error: rank 1 of 2, while opening the data: "
    assert said["0"].startswith(f"{who}{shards.name} does not exist"), said
    assert said["0"].count("error:") == 1
    assert said["1"] == ""


def test_what_one_process_cannot_load(shards: Path, tmp_path: Path) -> None:
    def spoil(rank: int) -> None:
        beginning.fill_model = lambda *_: None  # type: ignore[attr-defined]
        error = CheckpointError("the disk of this machine is damaged; mend it")
        if rank == 1:
            beginning.Beginning._load_init = raising(error)  # type: ignore[method-assign]
        else:
            beginning.Beginning._load_init = lambda *_: None  # type: ignore[method-assign]

    codes, said = run(tmp_path, shards, spoil, init="somewhere")
    assert codes == [2, 2]
    assert said == {
        "0": "error: rank 1 of 2, while loading weights: the disk of this machine is damaged; "
        "mend it\n",
        "1": "",
    }


@pytest.mark.parametrize("victims", [(1,), (0,), (0, 1)])
def test_a_defect_keeps_its_traceback(
    victims: tuple[int, ...], shards: Path, tmp_path: Path
) -> None:
    def spoil(rank: int) -> None:
        if rank in victims:
            pretrain.build_model = raising(ValueError("a mistake in the code"))  # type: ignore[attr-defined]

    codes, said = run(tmp_path, shards, spoil)
    assert codes == [1, 1]
    who = "rank 1 of 2, while building the model: " * (0 not in victims)
    assert f"\nerror: {who}ValueError: a mistake in the code\n" in said["0"]
    assert said["0"].count("Traceback") == 1
    assert "in raising" not in said["0"]
    assert "in run_pretrain" in said["0"]
    assert said["1"] == ""


def test_a_file_of_the_config_that_one_process_does_not_see(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hide(rank: int) -> None:
        if rank == 1:
            (tmp_path / "elsewhere").mkdir()
            os.chdir(tmp_path / "elsewhere")

    shutil.copytree(ROOT / "models" / "bert", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    codes, said = run(tmp_path, shards, hide, model="./mine/tiny.yaml")
    assert codes == [2, 2]
    assert said["0"].startswith("error: rank 1 of 2, while reading the config: model: "), said
    assert said["1"] == ""


def test_all_are_refused_alike_and_told_once(shards: Path, tmp_path: Path) -> None:
    codes, said = run(tmp_path, shards, lambda rank: None, "trainer.stpes=3")
    assert codes == [2, 2]
    assert said["0"].count("did you mean `steps`?") == 1
    assert "rank" not in said["0"]
    assert said["1"] == ""


def test_some_on_gpus_and_some_not_are_refused(shards: Path, tmp_path: Path) -> None:
    def before(rank: int) -> None:
        device = torch.device("cuda" if rank else "cpu")
        mesh.device_of = lambda *_: device  # type: ignore[attr-defined]
        torch.cuda.set_device = lambda device: None

    codes, said = run(tmp_path, shards, before)
    assert codes == [2, 2]
    assert "parallel.device: is auto, but 1 of 2 processes have a GPU" in said["0"]


def test_different_errors_are_all_told(shards: Path, tmp_path: Path) -> None:
    def spoil(rank: int) -> None:
        pretrain.build_model = raising(CheckpointError(f"disk {rank} is full"))  # type: ignore[attr-defined]

    codes, said = run(tmp_path, shards, spoil)
    assert codes == [2, 2]
    assert "error: disk 0 is full\n" in said["0"]
    assert "error: rank 1 of 2, while building the model: disk 1 is full\n" in said["0"]
    assert said["1"] == ""


def test_a_process_that_is_killed_before_training(shards: Path, tmp_path: Path) -> None:
    def kill(rank: int) -> None:
        if rank == 1:
            pretrain.build_model = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[attr-defined]

    codes, said = run(tmp_path, shards, kill, **{"parallel.timeout": 2})
    assert codes == [2, -signal.SIGKILL]
    assert said["0"].startswith("error: rank(s) [1] of 2 were not through with building the model")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_collective_that_one_process_does_not_reach(
    victim: int, shards: Path, tmp_path: Path
) -> None:
    """The one that waits in it is woken long before parallel.timeout, and finds out why."""

    def spoil(rank: int) -> None:
        board.GRACE = board.PATIENCE = 0.5  # type: ignore[misc]

        def build(*_: object, **__: object) -> None:
            if rank == victim:
                raise CheckpointError("not here")
            meshes[0].circle.gather(None)

        make = Mesh.__init__
        meshes: list[Mesh] = []

        def remember(mesh: Mesh, config: Any) -> None:
            meshes.append(mesh)
            make(mesh, config)

        Mesh.__init__ = remember  # type: ignore[method-assign, assignment]
        pretrain.build_model = build  # type: ignore[attr-defined, assignment]

    start = time.monotonic()
    codes, said = run(tmp_path, shards, spoil)
    assert time.monotonic() - start < KEYS["parallel.timeout"] / 2
    if victim == 1:
        assert codes == [2, 2]
        assert "error: rank 1 of 2, while building the model: not here\n" in said["0"], said
        return
    # Without torchrun the first one holds the store, so nobody can read its reason any more.
    assert codes == [2, 1]
    assert said["0"] == "error: not here\n"
    assert "error: rank 1 of 2, while building the model: lost another process" in said["1"], said
