"""Saving checkpoints: atomic, checksummed, pickle-free directories in `run_dir/checkpoints`.

`step_00000100/` holds tensors as safetensors files, `state.json`, whatever files belong to it, and
`manifest.json`, written last. It is written under a temporary name, every file is synced, and one
rename publishes it; so whatever kills the process, a directory under a final name is whole. The
newest one is found by verifying manifests: there is no pointer that could lie.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.durable import (
    FileRecord,
    copy_file,
    delete,
    hide,
    make_directory,
    publish,
    stale_directories,
    temporary_name,
    write_bytes,
)
from tencentpretrain.train.manifest import (
    MANIFEST,
    Manifest,
    Mode,
    UnknownFormatError,
    check_name,
    to_json,
)
from tencentpretrain.train.run_lock import RunLock
from tencentpretrain.train.saved_checkpoint import (
    CHECKPOINTS,
    STATE,
    Checkpoint,
    find_best,
    find_latest,
    open_checkpoint,
    ranked,
    sound_checkpoints,
    step_directories,
    step_name,
)
from tencentpretrain.train.tensor_file import SUFFIX, write_tensors

__all__ = ["Checkpoint", "CheckpointStore", "RunLock", "open_checkpoint"]

log = logging.getLogger(__name__)

Source = bytes | Path
_WAY_OUT: Final = "older checkpoints are untouched; free space there or choose another `run_dir`"


class CheckpointStore:
    """The checkpoints of one run; at most one process saves at a time (see `RunLock`).

    Args:
        run_dir: directory of the run; the checkpoints are in `run_dir/checkpoints`.
        keep_last: how many of the newest ones are kept, at least 1.
        keep_best: whether the one with the best score is kept beside them.
        keep_every: steps that are multiples of it are kept for ever; None for none.
        mode: whether the smallest or the greatest score is the best.
    """

    def __init__(
        self,
        run_dir: Path,
        keep_last: int = 2,
        keep_best: bool = True,
        keep_every: int | None = None,
        mode: Mode = "min",
    ) -> None:
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError("`keep_last` and `keep_every` must be at least 1")
        self.directory = run_dir / CHECKPOINTS
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.keep_every = keep_every
        self.mode: Mode = mode
        self._damaged: set[Path] = set()
        self._remover = ThreadPoolExecutor(max_workers=1, thread_name_prefix="remove")
        self._removals: list[Future[None]] = []

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        files: Mapping[str, Source] | None = None,
        score: float | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> Path:
        """Save a checkpoint; it is on the disk when this returns.

        A checkpoint of the same step is replaced in one step by the new one. Those that need not
        be kept are hidden, and deleted in the background (a gigabyte takes a second or two).

        Args:
            step: number of optimiser steps that were done.
            tensors: by file stem, then by name: {"model": {...}, "optimizer": {...}}.
            state: plain JSON data; all values, floats too, come back exactly.
            files: by name: bytes, or the path of a file or directory to copy.
            score: to find the best by; one that is not finite counts as none.
            fingerprints: what the state belongs to, such as the data, by name.

        Returns:
            The directory of the checkpoint.

        Raises:
            CheckpointError: if it cannot be written (full disk, permissions); what was there stays.
            TypeError: if `state` or a tensor cannot be stored exactly.
        """
        parts = {STATE: to_json(dict(state)), **(files or {})}
        _check_names(tensors, files or {})
        finite = score if score is not None and math.isfinite(score) else None
        manifest = Manifest(
            step=step,
            score=finite,
            mode=self.mode,
            torch_version=str(torch.__version__),
            fingerprints=dict(fingerprints or {}),
            files={},
        )
        final = self.directory / step_name(step)
        self._write(final, manifest, tensors, parts)
        self._damaged.discard(final)
        self._retain(step)
        return final

    def latest(self, verify: bool = True) -> Checkpoint | None:
        """The newest whole checkpoint; damaged newer ones are skipped with a warning.

        Args:
            verify: whether to read all bytes; otherwise only sizes are compared.

        Returns:
            None if nothing was ever saved.

        Raises:
            CheckpointError: if all checkpoints are damaged: starting anew must be the user's wish.
        """
        found = find_latest(self.directory, verify)
        if found is not None and verify:
            newer = step_directories(self.directory)
            self._damaged.update(newer[: newer.index(found.path)])
        return found

    def best(self, verify: bool = True) -> Checkpoint | None:
        """The whole checkpoint with the best score, of equal ones the newest; None without any."""
        return find_best(self.directory, self.mode, verify)

    def wait(self) -> None:
        """Wait until all that was to be removed is gone; the end of the process waits too."""
        while self._removals:
            self._removals.pop().result()

    def _write(
        self,
        final: Path,
        manifest: Manifest,
        tensors: Mapping[str, Mapping[str, Tensor]],
        files: Mapping[str, Source],
    ) -> None:
        """Write everything under a temporary name and publish it, or leave nothing."""
        partial = self.directory / temporary_name(final.name)
        try:
            self.wait()
            self._remove_stale()
            make_directory(self.directory)
            partial.mkdir()
            fill_checkpoint(partial, manifest, tensors, files)
            replaced = publish(partial, final)
        except OSError as error:
            self._discard(partial)
            raise CheckpointError(
                f"checkpoint `{final}` cannot be saved: {_reason(error, partial)}; {_WAY_OUT}"
            ) from error
        except BaseException:
            self._discard(partial)
            raise
        if replaced is not None:
            self._remove(replaced)

    def _retain(self, saved: int) -> None:
        """Remove what is older than `saved` and neither new, nor best, nor permanent.

        What is newer than `saved` stays and does not count: it was damaged when training went on
        from an older step, or is somebody else's.
        """
        sound = [
            checkpoint
            for checkpoint in sound_checkpoints(self.directory)
            if checkpoint.step <= saved and checkpoint.path not in self._damaged
        ]
        kept = {c.path for c in sound[: self.keep_last]}
        kept |= {c.path for c in ranked(sound, self.mode)[:1] if self.keep_best}
        kept |= {c.path for c in sound if self.keep_every and c.step % self.keep_every == 0}
        saved_name = step_name(saved)
        steps = step_directories(self.directory)
        older = steps[[path.name for path in steps].index(saved_name) + 1 :]
        for path in older:
            if path not in kept and not _is_foreign(path):
                try:
                    self._remove(hide(path))
                except OSError as error:
                    log.warning("`%s` cannot be removed: %s", path, error)

    def _remove_stale(self) -> None:
        """Remove what killed processes left unfinished, at once: its space may be needed."""
        for path in stale_directories(self.directory):
            self._delete(path)

    def _remove(self, hidden: Path) -> None:
        self._removals.append(self._remover.submit(self._delete, hidden))

    def _delete(self, path: Path) -> None:
        """Delete what is in the way of nobody; what cannot be deleted now is tried again later."""
        try:
            delete(path)
        except OSError as error:
            log.warning("`%s` cannot be removed: %s", path, error)

    def _discard(self, partial: Path) -> None:
        # The error on its way says what matters; the next save removes what is left.
        with contextlib.suppress(OSError):
            delete(partial)


def fill_checkpoint(
    directory: Path,
    manifest: Manifest,
    tensors: Mapping[str, Mapping[str, Tensor]],
    files: Mapping[str, Source],
) -> None:
    """Write all files of a checkpoint into the empty `directory`, the manifest last.

    Raises:
        OSError: if it cannot be written; a part of it may be left.
    """
    records = _write_parts(directory, tensors, files)
    complete = manifest.model_copy(update={"files": records})
    write_bytes(directory / MANIFEST, complete.to_bytes())


def _check_names(tensors: Mapping[str, object], files: Mapping[str, object]) -> None:
    """Refuse names that lead elsewhere or that two parts share."""
    taken = {STATE}
    for name in [*files, *(stem + SUFFIX for stem in tensors)]:
        check_name(name)
        if name in taken:
            raise CheckpointError(f"`{name}` would be in the checkpoint twice; rename one of them")
        taken.add(name)


def _write_parts(
    directory: Path, tensors: Mapping[str, Mapping[str, Tensor]], files: Mapping[str, Source]
) -> dict[str, FileRecord]:
    """Write everything but the manifest; records by path in `directory`."""
    records: dict[str, FileRecord] = {}
    for name, source in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            records[name] = write_bytes(path, source)
        elif source.is_dir():
            records.update(_copy_tree(source, directory, name))
        else:
            records[name] = copy_file(source, path)
    for stem, members in tensors.items():
        records[stem + SUFFIX] = write_tensors(directory / (stem + SUFFIX), members)
    return dict(sorted(records.items()))


def _copy_tree(source: Path, directory: Path, name: str) -> dict[str, FileRecord]:
    records: dict[str, FileRecord] = {}
    for folder, _, members in os.walk(source, onerror=_fail, followlinks=True):
        inside = Path(name) / Path(folder).relative_to(source)
        (directory / inside).mkdir(parents=True, exist_ok=True)
        for member in sorted(members):
            path = inside / member
            records[path.as_posix()] = copy_file(Path(folder) / member, directory / path)
    return records


def _fail(error: OSError) -> None:
    raise error


def _is_foreign(path: Path) -> bool:
    """Whether another version of the toolkit wrote it, so that it is not ours to judge."""
    try:
        Manifest.read(path)
    except UnknownFormatError:
        return True
    except CheckpointError:
        return False
    return False


def _reason(error: OSError, partial: Path) -> str:
    """Say which file and why, with names as they would have been."""
    name = str(error.filename or "").removeprefix(f"{partial}/")
    return f"{name}: {error.strerror}" if name else str(error.strerror)
