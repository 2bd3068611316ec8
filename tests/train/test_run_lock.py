import errno
import fcntl
import logging
import os
from pathlib import Path

import pytest

from tencentpretrain.errors import UserError
from tencentpretrain.train.run_lock import RunLock


def test_a_run_directory_has_one_user(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        with (
            pytest.raises(UserError, match=f"in use by process {os.getpid()} on"),
            RunLock(tmp_path / "run"),
        ):
            pass
        with RunLock(tmp_path / "other"):
            pass
    with RunLock(tmp_path / "run"):
        pass


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written to"), RunLock(tmp_path / "file"):
        pass


def test_a_file_system_without_locks_is_only_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), RunLock(tmp_path):
        pass
    assert "file system without locks" in caplog.text
