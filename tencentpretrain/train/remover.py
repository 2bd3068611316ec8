"""Deleting what is in the way of nobody, without anybody waiting for it."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tencentpretrain.train.durable import delete, stale_directories

log = logging.getLogger(__name__)


class Remover:
    """Deletes hidden directories one after another; a gigabyte takes a second or two."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="remove")
        self._removals: list[Future[None]] = []

    def remove(self, hidden: Path) -> None:
        """Delete `hidden` in the background."""
        self._removals.append(self._pool.submit(self._delete, hidden))

    def remove_stale(self, directory: Path) -> None:
        """Remove what killed processes left unfinished, at once: its space may be needed."""
        for path in stale_directories(directory):
            self._delete(path)

    def wait(self) -> None:
        """Wait until all that was to be removed is gone; the end of the process waits too."""
        while self._removals:
            self._removals.pop().result()

    def _delete(self, path: Path) -> None:
        """What cannot be deleted now is tried again later."""
        try:
            delete(path)
        except OSError as error:
            log.warning("`%s` cannot be removed: %s", path, error)
