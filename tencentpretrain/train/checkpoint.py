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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor

from tencentpretrain.distributed.processes import ALONE
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.checkpoint_files import (
    Source,
    TensorFile,
    check_names,
    tensor_files,
    write_parts,
)
from tencentpretrain.train.durable import (
    FileRecord,
    delete,
    hide,
    make_directory,
    publish,
    temporary_name,
    write_bytes,
)
from tencentpretrain.train.manifest import (
    MANIFEST,
    Manifest,
    Mode,
    UnknownFormatError,
    to_json,
)
from tencentpretrain.train.remover import Remover
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
from tencentpretrain.train.staging import Staging

__all__ = ["Checkpoint", "CheckpointStore", "RunLock", "open_checkpoint"]

if TYPE_CHECKING:
    from tencentpretrain.distributed.parallel import Parallel

log = logging.getLogger(__name__)

T = TypeVar("T")
_WAY_OUT: Final = "older checkpoints are untouched; free space there or choose another `run_dir`"


class CheckpointStore:
    """The checkpoints of one run; at most one process saves at a time (see `RunLock`).

    Args:
        run_dir: directory of the run; the checkpoints are in `run_dir/checkpoints`.
        keep_last: how many of the newest ones are kept, at least 1.
        keep_best: whether the one with the best score is kept beside them.
        keep_every: steps that are multiples of it are kept for ever; None for none.
        mode: whether the smallest or the greatest score is the best.
        parallel: the processes that save together; None is this one alone.
    """

    def __init__(
        self,
        run_dir: Path,
        keep_last: int = 2,
        keep_best: bool = True,
        keep_every: int | None = None,
        mode: Mode = "min",
        parallel: Parallel | None = None,
    ) -> None:
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError("`keep_last` and `keep_every` must be at least 1")
        self.directory = run_dir / CHECKPOINTS
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.keep_every = keep_every
        self.mode: Mode = mode
        self.circle = ALONE if parallel is None else parallel.saving_circle
        self.parallel = parallel
        self._damaged: set[Path] = set()
        self._remover = Remover()
        self._saver = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._staging = Staging()
        self._writing: Future[Path] | None = None

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
        return self._save(*self._planned(step, tensors, state, files, score, fingerprints))

    def save_in_background(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        files: Mapping[str, Source] | None = None,
        score: float | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> Future[Path]:
        """As `save`, but copies the tensors and writes the copies while the caller goes on.

        One checkpoint is written after another, and the memory of the copies is kept from one to
        the next. Errors of writing are those of the result.
        """
        final, manifest, found, parts = self._planned(
            step, tensors, state, files, score, fingerprints
        )
        if self._writing is not None:
            wait([self._writing])  # it reads the memory that the copies are about to fill
        copies = self._staging.copy(found)
        self._writing = self._saver.submit(self._save, final, manifest, copies, parts)
        return self._writing

    def _planned(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        files: Mapping[str, Source] | None,
        score: float | None,
        fingerprints: Mapping[str, str] | None,
    ) -> tuple[Path, Manifest, list[TensorFile], dict[str, Source]]:
        """Where to save, the manifest without its files, and all files but the manifest."""
        parts = {STATE: to_json(dict(state)), **(files or {})}
        check_names(tensors, files or {})
        finite = score if score is not None and math.isfinite(score) else None
        manifest = Manifest(
            step=step,
            score=finite,
            mode=self.mode,
            torch_version=str(torch.__version__),
            fingerprints=dict(fingerprints or {}),
            files={},
        )
        return (
            self.directory / step_name(step),
            manifest,
            tensor_files(tensors, self.parallel),
            parts,
        )

    def _save(
        self,
        final: Path,
        manifest: Manifest,
        tensors: Sequence[TensorFile],
        files: Mapping[str, Source],
    ) -> Path:
        self._write(final, manifest, tensors, files)
        if self.circle.rank == 0:
            self._damaged.discard(final)
            self._retain(manifest.step)
        return final

    def latest(self, verify: bool = True) -> Checkpoint | None:
        """The newest whole checkpoint; damaged newer ones are skipped with a warning.

        All processes call it: the first one chooses, and each verifies a share.

        Args:
            verify: whether to read all bytes; otherwise only sizes are compared.

        Returns:
            None if nothing was ever saved.

        Raises:
            CheckpointError: if all checkpoints are damaged: starting anew must be the user's wish.
        """
        found = find_latest(self.directory, verify, self.circle)
        if found is not None and verify:
            newer = step_directories(self.directory)
            self._damaged.update(newer[: newer.index(found.path)])
        return found

    def best(self, verify: bool = True) -> Checkpoint | None:
        """The whole checkpoint with the best score, of equal ones the newest; None without any."""
        return find_best(self.directory, self.mode, verify)

    def wait(self) -> None:
        """Wait until all that was to be removed is gone; the end of the process waits too."""
        self._remover.wait()

    def _write(
        self,
        final: Path,
        manifest: Manifest,
        tensors: Sequence[TensorFile],
        files: Mapping[str, Source],
    ) -> None:
        """Write everything under a temporary name and publish it, or leave nothing.

        Of several processes each writes its pieces, and the first one all else, the manifest last.
        """
        partial = self.directory / self.circle.first(temporary_name(final.name))
        is_first = self.circle.rank == 0

        def begin() -> None:
            self.wait()
            self._remover.remove_stale(self.directory)
            make_directory(self.directory)
            partial.mkdir()

        def write() -> dict[str, FileRecord]:
            return write_parts(partial, tensors, files if is_first else {})

        def end() -> None:
            complete = manifest.model_copy(update={"files": dict(sorted(records.items()))})
            write_bytes(partial / MANIFEST, complete.to_bytes())
            replaced = publish(partial, final)
            if replaced is not None:
                self._remover.remove(replaced)

        with self._discarding(partial):
            self._together(begin if is_first else _nothing, final, partial)
            own = self._together(write, final, partial)
            records: dict[str, FileRecord] = {}
            for said in self.circle.gather({n: r.to_dict() for n, r in (own or {}).items()}):
                records |= {name: FileRecord(**record) for name, record in said.items()}
            self._together(end if is_first else _nothing, final, partial)

    def _together(self, work: Callable[[], T], final: Path, partial: Path) -> T | None:
        """Do this process's part of saving; where one of them fails, all do."""
        error: BaseException | None = None
        done: T | None = None
        try:
            done = work()
        except OSError as cause:
            error = CheckpointError(
                f"checkpoint `{final}` cannot be saved: {_reason(cause, partial)}; {_WAY_OUT}"
            )
            error.__cause__ = cause
        except Exception as cause:
            error = cause
        self.circle.agree(error, f"saving `{final}`")
        return done

    @contextlib.contextmanager
    def _discarding(self, partial: Path) -> Iterator[None]:
        """Leave nothing where saving fails."""
        try:
            yield
        except BaseException:
            if self.circle.rank == 0:
                self._discard(partial)
            raise

    def _discard(self, partial: Path) -> None:
        # The error on its way says what matters; the next save removes what is left.
        with contextlib.suppress(OSError):
            delete(partial)

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
                    self._remover.remove(hide(path))
                except OSError as error:
                    log.warning("`%s` cannot be removed: %s", path, error)


def _nothing() -> None:
    """The part of processes that have none."""


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
