"""One process at a time writes to a run directory."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tencentpretrain.errors import UserError

log = logging.getLogger(__name__)
_UNSUPPORTED: Final = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


class RunLock:
    """Holds `run_dir/.lock` while the block runs, and creates `run_dir` where it is absent.

    The kernel releases the lock when the process ends, however it ends; the file stays and means
    nothing by itself. Only one process of a distributed run takes it.

    Raises:
        UserError: if another process holds the lock, or the directory cannot be written to.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        path = self.run_dir / ".lock"
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(
                f"run directory `{self.run_dir}` cannot be written to: "
                f"{error.strerror} (`{error.filename}`); choose another `run_dir`"
            ) from error
        try:
            self._acquire(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        # A forked data-loading worker would hold the lock on after this process was killed.
        os.register_at_fork(after_in_child=self._close)
        return self

    def _acquire(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise UserError(
                f"run directory `{self.run_dir}` is in use by {owner or 'another process'}; "
                "wait for it to end, stop it, or choose another `run_dir`"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            log.warning(
                "`%s` is on a file system without locks: do not start a second run in it",
                self.run_dir,
            )
            return
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        """Closing releases the lock; in a forked child it only drops the child's share of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
