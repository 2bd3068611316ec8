"""Files and directories that are whole or absent after a crash.

A directory is filled under a temporary name that holds the id of its process, every file in it is
synced, and only then does it get its final name. What a killed process leaves behind has a
temporary name, so that it can be told apart and removed without asking anybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from tencentpretrain.config import Config
from tencentpretrain.data.checksum import Checksum

COPY_BYTES: Final = 8 << 20
BACKGROUND_BYTES: Final = 1 << 20
"""Pieces from this size on are checksummed by a second thread while this one writes them."""
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_NO_EXCHANGE: Final = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}
_TEMPORARY: Final = re.compile(r"\.tmp_.+_(?P<pid>\d+)_[0-9a-f]{8}")


class FileRecord(Config):
    """Size and checksum of a file, as a manifest lists them."""

    bytes: int
    """Size of the file in bytes."""
    checksum: str
    """Checksum of the whole file, with the name of its kind in front."""


class DurableFile:
    """A new file that is checksummed while it is written, and on the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checksum = Checksum()
        self._size = 0
        self._pool = ThreadPoolExecutor(max_workers=1)
        with self._named():
            self._file: BinaryIO = open(path, "xb")  # noqa: SIM115  # closed by __exit__

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`; a memoryview must be of bytes."""
        with self._named():
            if len(data) < BACKGROUND_BYTES:
                self._checksum.update(data)
                self._file.write(data)
            else:
                summed = self._pool.submit(self._checksum.update, data)
                self._file.write(data)
                summed.result()
        self._size += len(data)

    @property
    def record(self) -> FileRecord:
        """Of what is written so far."""
        return FileRecord(bytes=self._size, checksum=str(self._checksum))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        with self._named(), self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of writing do not say by themselves which file was written."""
        try:
            yield
        except OSError as error:
            error.filename = str(self._path)
            raise


def write_bytes(path: Path, data: bytes) -> FileRecord:
    """Write a new file and wait until it is on the disk."""
    with DurableFile(path) as file:
        file.write(data)
    return file.record


def copy_file(source: Path, path: Path) -> FileRecord:
    """Copy to a new file and wait until it is on the disk."""
    with open(source, "rb") as reader, DurableFile(path) as file:
        while piece := reader.read(COPY_BYTES):
            file.write(piece)
    return file.record


def sync_directory(directory: Path) -> None:
    """Wait until the names in `directory` are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Create `directory` and its parents where they are absent, each of them on the disk."""
    absent = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    for folder in reversed(absent):
        folder.mkdir(exist_ok=True)
        sync_directory(folder.parent)


def temporary_name(name: str) -> str:
    """A free name for what will be, or was, called `name`; tells that this process made it."""
    return f".tmp_{name}_{os.getpid()}_{secrets.token_hex(4)}"


def stale_directories(directory: Path) -> list[Path]:
    """Temporary directories in `directory` whose process is gone.

    Those of this very process count as stale: it makes one at a time, and in a container the
    next process often gets the id of the one that was killed.
    """
    if not directory.is_dir():
        return []
    found = ((path, _TEMPORARY.fullmatch(path.name)) for path in sorted(directory.iterdir()))
    return [path for path, match in found if match and not _is_other(int(match["pid"]))]


def _is_other(pid: int) -> bool:
    """Whether another process that is alive has this id."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def publish(partial: Path, final: Path) -> Path | None:
    """Give the complete directory `partial` the name `final`; return where its predecessor is now.

    A kill at any moment leaves either the old or the new one under the final name; only on file
    systems that cannot exchange two names (some network ones) there is a moment without either.
    """
    for folder, _, _ in os.walk(partial, topdown=False):
        sync_directory(Path(folder))
    if not os.path.lexists(final):
        os.rename(partial, final)
        sync_directory(final.parent)
        return None
    old = partial
    if not _exchange(partial, final):
        old = final.with_name(temporary_name(final.name))
        os.rename(final, old)
        os.rename(partial, final)
    sync_directory(final.parent)
    return old


def hide(path: Path) -> Path:
    """Give what will be removed a temporary name, so that no half of it is seen under its own."""
    hidden = path.with_name(temporary_name(path.name))
    os.rename(path, hidden)
    return hidden


def delete(path: Path) -> None:
    """Remove a directory with all it holds, or a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system cannot (Python has no call for it)."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))
