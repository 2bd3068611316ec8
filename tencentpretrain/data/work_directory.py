"""The temporary directory beside an output, which a killed process leaves and the next removes."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

LOCK: Final = ".lock"
"""File in the directory that its process holds a lock on; the kernel releases it at the end."""


class WorkDirectory:
    """A new directory beside `output`, in which it is prepared; its parents are made.

    Directories of runs for the same output that have ended without cleaning up are removed first,
    but never that of a run that is still going, nor one whose lock says nothing: where the file
    system has no locks, they stay.

    Raises:
        OSError: if it cannot be made.
    """

    def __init__(self, output: Path) -> None:
        parent, name = output.absolute().parent, output.name
        parent.mkdir(parents=True, exist_ok=True)
        _remove_left(parent, name)
        self.path = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
        self._descriptor: int | None = None
        try:
            # mkdtemp keeps others out; the result is to be as readable as any directory.
            mask = os.umask(0)
            os.umask(mask)
            self.path.chmod(0o777 & ~mask)
            self._lock()
        except BaseException:
            self.remove()
            raise
        # A forked worker would hold the lock on after this process was killed.
        os.register_at_fork(after_in_child=self._close)

    def _lock(self) -> None:
        # It gets its name when it is held, so that nobody finds one that seems to be free.
        partial = self.path / f"{LOCK}.new"
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a file system without locks: nobody is to look at one
            os.close(descriptor)
            partial.unlink()
            return
        self._descriptor = descriptor
        partial.rename(self.path / LOCK)

    def finish(self) -> None:
        """Remove what is not part of the output; to be called before the directory is renamed.

        Without its lock nobody takes the directory for one that was left.
        """
        (self.path / LOCK).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove what is still under the temporary name, and release the lock."""
        self._close()  # first, as a file that is open stays in folders of the network
        shutil.rmtree(self.path, ignore_errors=True)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _remove_left(parent: Path, name: str) -> None:
    """Remove directories for the output `name` whose processes have ended."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}")
    try:
        found = [path for path in parent.iterdir() if pattern.fullmatch(path.name)]
    except OSError:  # a folder that may be written to, but not listed
        return
    for left in found:
        try:
            descriptor = os.open(left / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # just made, just finished, or another user's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its process is still going
        else:
            log.warning("removing `%s`, which a run that was killed has left", left)
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(descriptor)
