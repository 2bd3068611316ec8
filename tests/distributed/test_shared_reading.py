"""A checkpoint that several processes open together: one chooses it, each verifies a share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tencentpretrain.distributed.processes import Circle, RemoteError
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train import saved_checkpoint
from tencentpretrain.train.checkpoint import CheckpointStore
from tencentpretrain.train.saved_checkpoint import find_latest, open_checkpoint
from tests.helpers.two_processes import in_two_processes


def two_checkpoints(folder: Path) -> Path:
    store = CheckpointStore(folder)
    for step in (1, 2):
        tensors = {stem: {"a": torch.full((step, 50), step)} for stem in ("model", "optimizer")}
        store.save(step, tensors, {"step": step}, {"notes": b"n" * 9})
    store.wait()
    return store.directory


def found_by(
    rank: int, directory: str, is_blind: bool = False, opens: bool = False
) -> dict[str, Any]:
    """What each process finds or opens, and the files that it has read."""
    read: list[str] = []
    look = saved_checkpoint.content_problem

    def watched(path: Path, record: Any) -> str | None:
        read.append(path.relative_to(directory).as_posix())
        return look(path, record)

    saved_checkpoint.content_problem = watched  # type: ignore[attr-defined]
    if is_blind and rank == 1:
        saved_checkpoint.step_directories = lambda directory: []
    try:
        circle = Circle(dist.group.WORLD)
        if opens:
            found = open_checkpoint(Path(directory), circle=circle)
        else:
            found = find_latest(Path(directory), circle=circle)
    except (CheckpointError, RemoteError) as error:
        return {"error": str(error)}
    assert found is not None
    found.state()
    return {"step": found.step, "read": read}


@pytest.mark.parametrize("opens", [False, True])
def test_each_process_reads_a_share_of_the_bytes(opens: bool, tmp_path: Path) -> None:
    one, other = in_two_processes(found_by, str(two_checkpoints(tmp_path)), False, opens)
    assert one["step"] == other["step"] == 2
    assert not set(one["read"]) & set(other["read"])
    names = ("model.safetensors", "notes", "optimizer.safetensors", "state.json")
    assert sorted(one["read"] + other["read"]) == [f"step_00000002/{name}" for name in names]


def test_the_first_process_chooses(tmp_path: Path) -> None:
    one, other = in_two_processes(found_by, str(two_checkpoints(tmp_path)), True)
    assert one["step"] == other["step"] == 2


def opened_by_one(rank: int, directory: str) -> dict[str, Any]:
    return found_by(rank, f"{directory}/none" if rank else directory, opens=True)


def test_what_one_process_does_not_see_no_process_opens(tmp_path: Path) -> None:
    one, other = in_two_processes(opened_by_one, str(two_checkpoints(tmp_path)))
    assert "does not exist" in other["error"]
    assert one["error"].endswith(f"failed on rank 1: {other['error']}")


def test_what_one_process_finds_damaged_no_process_takes(tmp_path: Path) -> None:
    directory = two_checkpoints(tmp_path)
    other = in_two_processes(found_by, str(directory), False)[1]
    path = directory / other["read"][0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert [s["step"] for s in in_two_processes(found_by, str(directory), False)] == [1, 1]
    for path in directory.glob("step_00000001/model*"):
        path.unlink()
    said = [found["error"] for found in in_two_processes(found_by, str(directory), False)]
    assert said[0] == said[1]
    assert "all 2 checkpoints" in said[0]
