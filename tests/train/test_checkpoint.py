import logging
import math
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.errors import CheckpointError
from tencentpretrain.train import durable, remover
from tencentpretrain.train.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from tencentpretrain.train.manifest import Manifest


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a power cut could tell the difference; one test checks what is synced, and when."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def tensors_of(step: int) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"weight": torch.full((3, 4), float(step)), "steps": torch.tensor(step)},
        "optimizer": {"weight/exp_avg": torch.full((3, 4), step / 3)},
    }


def save(store: CheckpointStore, step: int, score: float | None = None, **kwargs: Any) -> Path:
    state = {"step": step, "loss": step / 7}
    files = {"config.yaml": b"a: 1\n"}
    path = store.save(step, tensors_of(step), state, files, score, **kwargs)
    store.wait()
    return path


def steps(store: CheckpointStore) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in store.directory.iterdir())


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_everything_comes_back(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    (tokenizer / "more").mkdir(parents=True)
    (tokenizer / "vocab.txt").write_text("[PAD]\n好\n", encoding="utf-8")
    (tokenizer / "more" / "merges").write_bytes(b"\0\1")
    store = CheckpointStore(tmp_path / "run")
    files = {"config.yaml": b"a: 1\n", "tokenizer": tokenizer, "notes": tokenizer / "vocab.txt"}
    state = {"list": [1, 2.5, None, True, "ü"], "nested": {"big": 2**90}}
    path = store.save(100, tensors_of(100), state, files, 0.25, {"data": "abc"})
    assert path == tmp_path / "run" / "checkpoints" / "step_00000100"
    found = store.latest()
    assert found is not None
    assert (found.path, found.step, found.score) == (path, 100, 0.25)
    assert found.state() == state
    assert found.manifest.fingerprints == {"data": "abc"}
    assert found.manifest.torch_version == str(torch.__version__)
    assert found.unexpected == []
    for stem, members in tensors_of(100).items():
        loaded = found.tensors(stem)
        assert loaded.keys() == members.keys()
        assert all(torch.equal(loaded[name], members[name]) for name in members)
    assert list(found.tensors("model", names=["steps"])) == ["steps"]
    assert found.file("config.yaml").read_bytes() == b"a: 1\n"
    assert (found.file("tokenizer") / "vocab.txt").read_text(encoding="utf-8") == "[PAD]\n好\n"
    assert (found.file("tokenizer") / "more" / "merges").read_bytes() == b"\0\1"
    assert found.file("notes").read_bytes() == (tokenizer / "vocab.txt").read_bytes()


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (save(CheckpointStore(tmp_path / name), 5, 0.5) for name in "ab")
    assert sorted(p.name for p in first.iterdir()) == sorted(p.name for p in second.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [{"b": (1, 2)}]}, r"`state\.a\[0\]\.b` must be plain JSON .* type tuple"),
        ({"a": {1: 2}}, r"`state\.a` has the key 1"),
        ({"a": torch.ones(1)}, r"`state\.a` .* type Tensor"),
        ({"$float": "nan"}, "keys must be ordinary strings"),
    ],
)
def test_what_json_would_change_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        CheckpointStore(tmp_path).save(1, {}, value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "manifest.json", ".", "a//b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path / "run")
    with pytest.raises(CheckpointError, match="not a name that a file"):
        store.save(1, {}, {}, {name: b""})
    hostile = Manifest(step=1, fingerprints={}, files={name: {"bytes": 0, "checksum": ""}})
    (tmp_path / "step_00000001").mkdir()
    (tmp_path / "step_00000001" / "manifest.json").write_bytes(hostile.to_bytes())
    with pytest.raises(CheckpointError, match="not a name that a file"):
        open_checkpoint(tmp_path / "step_00000001")


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_no_file_replaces_another_of_the_same_checkpoint(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="twice"):
        CheckpointStore(tmp_path).save(1, {"model": {}}, {}, {name: b""})


def test_files_are_synced_before_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def record_sync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def record_rename(old: Path, new: Path) -> None:
        events.append(f"rename to {new.name}")
        rename(old, new)

    store = CheckpointStore(tmp_path)
    save(store, 1)
    monkeypatch.setattr(durable.os, "fsync", record_sync)
    monkeypatch.setattr(durable.os, "rename", record_rename)
    path = save(store, 2)
    renamed = events.index("rename to step_00000002")
    assert {file.name for file in path.iterdir()} < set(events[:renamed])
    assert events[renamed - 2] == "manifest.json"
    assert events[renamed - 1].startswith(".tmp_step_00000002")
    assert events[renamed + 1 :] == ["checkpoints"]


def test_a_step_that_exists_is_replaced(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    store.save(1, {"model": {"other": torch.ones(2)}}, {"second": True})
    store.wait()
    found = store.latest()
    assert found is not None
    assert found.state() == {"second": True}
    assert list(found.tensors("model")) == ["other"]
    assert steps(store) == [1]


def test_a_step_is_replaced_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(durable, "_exchange", lambda first, second: bool(asked.append(second)))
    store = CheckpointStore(tmp_path)
    save(store, 1)
    store.save(1, {"model": {"other": torch.ones(2)}}, {"second": True})
    store.wait()
    found = store.latest()
    assert found is not None
    assert found.state() == {"second": True}
    assert asked
    assert steps(store) == [1]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step, score in enumerate([0.5, 0.2, 0.7, None, 0.6, math.nan], start=1):
        save(store, step, score)
    assert steps(store) == [2, 5, 6]
    best, latest = store.best(), store.latest()
    assert best is not None
    assert latest is not None
    assert (best.step, latest.step) == (2, 6)
    assert latest.score is None


def test_the_greatest_score_may_be_the_best_and_ties_go_to_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, mode="max")
    for step, score in enumerate([0.0, -1.0, 0.0, -2.0], start=1):
        save(store, step, score)
    assert steps(store) == [3, 4]
    assert open_checkpoint(tmp_path).step == 3
    assert open_checkpoint(tmp_path, "latest").step == 4


def test_d62_a_score_of_zero_is_a_score(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, mode="max")
    save(store, 1, 0.0)
    best = store.best()
    assert best is not None
    assert best.score == 0.0


def test_the_best_need_not_be_kept_and_some_are_permanent(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=False, keep_every=3)
    for step in range(1, 9):
        save(store, step, float(step))
    assert steps(store) == [3, 6, 8]


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"keep_every": 0}])
def test_at_least_one_is_kept(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        CheckpointStore(tmp_path, **options)


def test_damaged_newer_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    """After damage training goes on from an older step, whose successors must survive."""
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (100, 200, 300):
        path = save(store, step)
    flip(path / "model.safetensors", -1)
    found = store.latest()
    assert found is not None
    assert found.step == 200
    for step in (210, 220, 230):
        save(CheckpointStore(tmp_path, keep_last=2), step)
    assert steps(store) == [220, 230, 300]
    store.latest()
    save(store, 240)
    save(store, 310)
    assert steps(store) == [240, 310]
    assert open_checkpoint(tmp_path).step == 310


def test_checkpoints_of_another_version_are_left_alone(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    manifest = save(store, 1) / "manifest.json"
    manifest.write_bytes(
        manifest.read_bytes().replace(b'"format_version": 1', b'"format_version": 2')
    )
    with pytest.raises(CheckpointError, match="format version 2, but this toolkit reads version 1"):
        store.latest()
    save(store, 2)
    save(store, 3)
    assert steps(store) == [1, 3]


def test_open_checkpoint_finds_what_is_meant(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=5)
    first, second = save(store, 1, 0.1), save(store, 2, 0.2)
    save(store, 3)
    assert open_checkpoint(tmp_path).path == first
    assert open_checkpoint(tmp_path / "checkpoints").path == first
    assert open_checkpoint(tmp_path, "latest").step == 3
    assert open_checkpoint(second).step == 2
    second.rename(tmp_path / "released")
    assert open_checkpoint(tmp_path / "released").step == 2


def test_open_checkpoint_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "runs" / "reviews").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="does not exist; did you mean `reviews`"):
        open_checkpoint(tmp_path / "runs" / "review")
    with pytest.raises(CheckpointError, match="is not a run directory"):
        open_checkpoint(tmp_path / "runs")
    (tmp_path / "runs" / "reviews" / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        open_checkpoint(tmp_path / "runs" / "reviews")
    save(CheckpointStore(tmp_path / "runs" / "reviews"), 1)
    with pytest.raises(CheckpointError, match="has a score"):
        open_checkpoint(tmp_path / "runs" / "reviews", "best")
    (tmp_path / "old.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="may be a pickle"):
        open_checkpoint(tmp_path / "old.bin")


def test_parts_that_are_absent_are_named(tmp_path: Path) -> None:
    found = Checkpoint(save(CheckpointStore(tmp_path), 1))
    with pytest.raises(CheckpointError, match=r"no `modl.safetensors`; did you mean `model\.saf"):
        found.tensors("modl")
    with pytest.raises(CheckpointError, match="no tensor `wight`; did you mean `weight`"):
        found.tensors("model", names=["wight"])


def test_nothing_saved_yet(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    assert store.latest() is None
    assert store.best() is None
    assert not (tmp_path / "run").exists()


def test_saving_does_not_wait_for_what_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting a gigabyte takes seconds on some disks; the next save waits for it, not this one."""
    may_delete, deleted = threading.Event(), []

    def delete_late(path: Path) -> None:
        assert may_delete.wait(30)
        deleted.append(path.name[: len(".tmp_step_00000001")])
        durable.delete(path)

    monkeypatch.setattr(remover, "delete", delete_late)
    store = CheckpointStore(tmp_path, keep_last=1)
    for step in (1, 2):
        store.save(step, {}, {})
    assert not (store.directory / "step_00000001").exists()
    assert not deleted
    may_delete.set()
    store.save(3, {}, {})
    store.wait()
    assert deleted == [".tmp_step_00000001", ".tmp_step_00000002"]
    assert steps(store) == [3]


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    with subprocess.Popen(["true"]) as process:
        dead = process.pid
    names = {
        f".tmp_step_00000002_{dead}_0123abcd": False,
        f".tmp_step_00000002_{os.getpid()}_0123abcd": False,
        f".tmp_step_00000002_{os.getppid()}_0123abcd": True,
        ".tmp_of_somebody_else": True,
        "notes": True,
    }
    for name in names:
        (store.directory / name).mkdir()
        (store.directory / name / "model.safetensors").write_bytes(b"half")
    save(store, 2)
    assert {name: (store.directory / name).exists() for name in names} == names


def test_warnings_name_directory_file_and_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    with open(save(store, 2) / "optimizer.safetensors", "r+b") as file:
        file.truncate(10)
    with caplog.at_level(logging.WARNING):
        found = store.latest()
    assert found is not None
    assert found.step == 1
    (message,) = caplog.messages
    assert "step_00000002` is skipped: optimizer.safetensors is truncated: it has 10 of" in message


def test_a_checkpoint_in_the_background_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    store, weight = CheckpointStore(tmp_path), torch.ones(1000)
    writing = store.save_in_background(1, {"model": {"weight": weight}}, {"step": 1})
    weight.zero_()
    path = writing.result()
    assert torch.equal(Checkpoint(path).tensors("model")["weight"], torch.ones(1000))
    assert path == store.save(1, {"model": {"weight": torch.ones(1000)}}, {"step": 1})


def test_the_next_checkpoint_in_the_background_waits_for_the_memory_of_the_last(
    tmp_path: Path,
) -> None:
    store, weight = CheckpointStore(tmp_path, keep_last=3), torch.ones(100_000)
    paths = []
    for step in range(1, 4):
        weight.fill_(step)
        shape = (-1,) if step < 3 else (100, 1000)
        paths.append(store.save_in_background(step, {"model": {"w": weight.view(shape)}}, {}))
    for step, path in enumerate(paths, 1):
        saved = Checkpoint(path.result()).tensors("model")["w"]
        assert torch.equal(saved.flatten(), torch.full((100_000,), float(step)))


def test_an_error_in_the_background_is_that_of_its_result(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    (tmp_path / "run").write_text("a file where a directory should be")
    with pytest.raises(CheckpointError, match="cannot be saved"):
        store.save_in_background(1, {"model": {}}, {}).result()
