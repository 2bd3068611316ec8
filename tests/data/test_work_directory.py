"""What a killed run leaves beside its output is removed by the next; a living one's is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tencentpretrain.data.shards import ShardWriter, open_shards
from tencentpretrain.data.work_directory import LOCK, WorkDirectory

PROGRAM = """
import os, sys, time
from pathlib import Path
from tencentpretrain.data.shards import ShardWriter
writer = ShardWriter(Path(sys.argv[1]), vocab_size=9).__enter__()
writer.add([[1, 2]])
if os.fork() == 0:  # a worker, which outlives its parent
    time.sleep(60)
    os._exit(0)
print("written", flush=True)
time.sleep(60)
"""


def write(target: Path) -> None:
    with ShardWriter(target, vocab_size=9) as writer:
        writer.add([[3]])


def test_the_next_run_removes_what_a_killed_one_has_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "s")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "written\n"
            (left,) = tmp_path.iterdir()
            write(tmp_path / "s")
            assert {*tmp_path.iterdir()} == {left, tmp_path / "s"}  # it is still going
            (tmp_path / "s").rename(tmp_path / "first")
            process.kill()
            process.wait()
            write(tmp_path / "s")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert {*tmp_path.iterdir()} == {tmp_path / "first", tmp_path / "s"}
    assert f"removing `{left}`, which a run that was killed has left" in caplog.text
    assert len(open_shards(tmp_path / "s")) == 1


def test_other_directories_stay(tmp_path: Path) -> None:
    names = [".s.abcdefgh", ".s.old", ".t.abcdefgh", "s.abcdefgh"]
    for name in names:  # the first has no lock; the others are not of this output
        (tmp_path / name).mkdir()
        if name != names[0]:
            (tmp_path / name / LOCK).touch()
    write(tmp_path / "s")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "s"}


def test_no_lock_is_published(tmp_path: Path) -> None:
    write(tmp_path / "s")
    assert all(not path.name.startswith(".") for path in (tmp_path / "s").iterdir())


def test_without_locks_of_the_file_system_all_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("tencentpretrain.data.work_directory.fcntl.flock", fail)
    first = WorkDirectory(tmp_path / "s")
    write(tmp_path / "s")
    assert {*tmp_path.iterdir()} == {first.path, tmp_path / "s"}
    first.remove()
    assert [*tmp_path.iterdir()] == [tmp_path / "s"]
