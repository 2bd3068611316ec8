"""Whatever happens to a disk or a file: it is named, and the newest whole checkpoint is found."""

import json
import logging
import os
import pickle
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tencentpretrain.errors import CheckpointError
from tencentpretrain.train import durable
from tencentpretrain.train.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from tests.helpers.checkpoints import is_consistent, save, two_checkpoints

LARGE = 300_000


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a power cut could tell the difference; tests/train checks what is synced, and when."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def assert_first_is_used(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, message: str
) -> None:
    """The damage to the second is named, and the first one is used."""
    with caplog.at_level(logging.WARNING):
        found = store.latest()
    assert found is not None
    assert found.step == 1
    assert is_consistent(found)
    assert any("step_00000002" in text and message in text for text in caplog.messages)
    with pytest.raises(CheckpointError, match="step_00000002"):
        open_checkpoint(store.directory / "step_00000002")


FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    store, path = two_checkpoints(tmp_path)
    assert sorted(FILES) == sorted(file.name for file in path.iterdir())
    whole = (path / name).read_bytes()
    drawn = random.Random(name)
    for _ in range(25):
        altered = bytearray(whole)
        altered[drawn.randrange(len(whole))] ^= 1 << drawn.randrange(8)
        (path / name).write_bytes(altered)
        caplog.clear()
        assert_first_is_used(store, caplog, name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, share: float
) -> None:
    store, path = two_checkpoints(tmp_path)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: int(share * len(whole))])
    reason = "manifest.json was altered" if name == "manifest.json" else f"{name} is truncated"
    assert_first_is_used(store, caplog, reason)


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    store, path = two_checkpoints(tmp_path)
    (path / name).unlink()
    assert_first_is_used(store, caplog, f"{name} is missing")


def test_a_longer_file_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, path = two_checkpoints(tmp_path)
    with open(path / "state.json", "ab") as file:
        file.write(b" ")
    assert_first_is_used(store, caplog, "state.json was altered")


def test_a_planted_pipe_does_not_block(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, path = two_checkpoints(tmp_path)
    for name in ("state.json", "manifest.json"):
        (path / name).unlink()
        os.mkfifo(path / name)
        caplog.clear()
        assert_first_is_used(store, caplog, f"{name} ")


def test_a_device_in_place_of_an_empty_file_is_found(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(1, {}, {}, {"labels.txt": b""})
    (path / "labels.txt").unlink()
    (path / "labels.txt").symlink_to("/dev/null")
    with pytest.raises(CheckpointError, match=r"labels\.txt is not an ordinary file"):
        open_checkpoint(path)


def test_a_checkpoint_of_another_step_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, path = two_checkpoints(tmp_path)
    shutil.rmtree(path)
    shutil.copytree(store.directory / "step_00000001", path)
    assert_first_is_used(store, caplog, "of step 1")


def test_all_damaged_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    store, path = two_checkpoints(tmp_path)
    (path / "state.json").unlink()
    (store.directory / "step_00000001" / "manifest.json").write_bytes(b"{")
    for find in (store.latest, lambda: open_checkpoint(tmp_path)):
        with pytest.raises(CheckpointError, match=r"all 2 .*state\.json is missing.*manifest"):
            find()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"format_version": 1}',
        b'{"format_version": "1", "step": 2, "files": {}}',
        b'{"format_version": 1, "step": NaN, "files": {}}',
        b'{"$float": []}',
        b"[" * 100_000,
        b'{"format_version": ' + b"9" * 10_000 + b"}",
    ],
    ids=range(11),
)
def test_hostile_manifests_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    store, path = two_checkpoints(tmp_path)
    (path / "manifest.json").write_bytes(text)
    assert_first_is_used(store, caplog, "manifest.json was altered")


class Planted:
    """Unpickling an instance creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """A malicious pickle; the test fails if it runs, or if anything is unpickled at all."""
    mark = tmp_path / "it_ran"
    data = pickle.dumps(Planted(mark))
    pickle.loads(data)
    assert mark.exists()
    mark.unlink()

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    yield data
    assert not mark.exists()


def test_planted_pickles_are_listed_and_never_opened(
    tmp_path: Path, planted: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store, path = two_checkpoints(tmp_path / "run")
    names = [".metadata", "optimizer.pt", "pytorch_model.bin"]
    for name in names:
        (path / name).write_bytes(planted)
    with caplog.at_level(logging.WARNING):
        found = store.latest()
    assert found is not None
    assert found.step == 2
    assert is_consistent(found)
    assert found.unexpected == names
    assert any(all(name in text for name in names) for text in caplog.messages)


def test_a_pickle_in_place_of_tensors_is_refused_even_with_a_manifest_that_fits(
    tmp_path: Path, planted: bytes
) -> None:
    store, path = two_checkpoints(tmp_path / "run")
    (path / "model.safetensors").write_bytes(planted)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(path)
    (path / "model.safetensors").unlink()
    record = durable.write_bytes(path / "model.safetensors", planted)
    manifest = Checkpoint(store.directory / "step_00000001").manifest
    files = {**manifest.files, "model.safetensors": record}
    for name in ("optimizer.safetensors", "state.json", "config.yaml"):
        shutil.copy(store.directory / "step_00000001" / name, path / name)
    forged = manifest.model_copy(update={"step": 2, "files": files})
    (path / "manifest.json").write_bytes(forged.to_bytes())
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors` is no readable safetensors"):
        checkpoint.tensors("model")


def test_d90_a_pickle_is_refused_as_a_checkpoint(tmp_path: Path, planted: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(planted)
    with pytest.raises(CheckpointError, match="may be a pickle"):
        open_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("size", [LARGE // 10, LARGE])
def test_a_file_size_limit_leaves_no_trace(tmp_path: Path, size: int) -> None:
    store, _ = two_checkpoints(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be saved: model\.safetensors: File too"):
            save(store, 3, size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_only(store, [1, 2])
    save(store, 3, size)
    assert_only(store, [2, 3])


def assert_only(store: CheckpointStore, steps: list[int]) -> None:
    """There are whole checkpoints of `steps` and nothing else."""
    names = sorted(path.name for path in store.directory.iterdir())
    assert names == [f"step_{step:08d}" for step in steps]
    for step, name in zip(steps, names, strict=True):
        checkpoint = open_checkpoint(store.directory / name)
        assert checkpoint.step == step
        assert is_consistent(checkpoint)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount`")
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_no_trace(small_disk: Path) -> None:
    store, _ = two_checkpoints(small_disk)
    for size in (LARGE, LARGE // 2):
        with pytest.raises(CheckpointError, match=r"\.safetensors: No space left on device"):
            save(store, 3, size)
        assert_only(store, [1, 2])
    save(store, 3)
    assert_only(store, [2, 3])


def test_missing_permission_is_named(tmp_path: Path) -> None:
    store, _ = two_checkpoints(tmp_path)
    store.directory.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(CheckpointError, match=r"cannot be saved: .*Permission denied"):
            save(store, 3)
    finally:
        os.seteuid(user)
        store.directory.chmod(0o700)
    assert_only(store, [1, 2])


def test_an_interrupt_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = two_checkpoints(tmp_path)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(store, 3)
    assert_only(store, [1, 2])


def test_state_is_readable_json(tmp_path: Path) -> None:
    """A person with a damaged run can look into it with any tool."""
    _, path = two_checkpoints(tmp_path)
    for name in ("state.json", "manifest.json"):
        json.loads((path / name).read_text(), parse_constant=pytest.fail)
