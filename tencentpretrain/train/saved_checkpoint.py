"""Finding and reading checkpoints: damaged ones are told apart, and nothing is ever unpickled."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from tencentpretrain.config import nearest
from tencentpretrain.distributed.processes import ALONE, Circle
from tencentpretrain.errors import CheckpointError
from tencentpretrain.problems import nothing_at
from tencentpretrain.train.manifest import (
    MANIFEST,
    Manifest,
    Mode,
    content_problem,
    from_json,
    size_problem,
)
from tencentpretrain.train.pieces import PieceTensors
from tencentpretrain.train.tensor_file import SUFFIX, LazyTensors, open_tensors, read_tensors

log = logging.getLogger(__name__)

CHECKPOINTS: Final = "checkpoints"
STATE: Final = "state.json"
_STEP: Final = re.compile(r"step_(?P<step>\d{8,})")
_PICKLES: Final = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


def step_name(step: int) -> str:
    """Name of the directory of a checkpoint."""
    return f"step_{step:08d}"


def step_directories(directory: Path) -> list[Path]:
    """What is called like a checkpoint in `directory`, newest first; it may be damaged."""
    if not directory.is_dir():
        return []
    found = [(m, path) for path in directory.iterdir() if (m := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(((int(m["step"]), p) for m, p in found), reverse=True)]


class Checkpoint:
    """A saved state of training. Each file is verified before its first use.

    Args:
        path: directory of the checkpoint.
        is_trusted: whether another process has verified it.

    Raises:
        CheckpointError: if its manifest is absent or altered, or a file is absent or of another
            size; `verify` finds what only reading all bytes can find.
    """

    def __init__(self, path: Path, is_trusted: bool = False) -> None:
        self.path = path
        self.manifest = Manifest.read(path)
        self._verified = set(self.manifest.files) if is_trusted else set[str]()
        named = _STEP.fullmatch(path.name)
        if named and int(named["step"]) != self.step:
            raise CheckpointError(f"{MANIFEST} is of step {self.step}, not of this directory")
        self._raise(
            f"{name} {problem}"
            for name, record in self.manifest.files.items()
            if (problem := size_problem(path / name, record))
        )

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def score(self) -> float | None:
        return self.manifest.score

    @property
    def unexpected(self) -> list[str]:
        """Files in the directory that are not part of the checkpoint; nothing ever opens them."""
        files = (path for path in self.path.rglob("*") if not path.is_dir())
        names = (path.relative_to(self.path).as_posix() for path in files)
        return sorted(set(names) - {MANIFEST, *self.manifest.files})

    def verify(self, circle: Circle = ALONE) -> None:
        """Read all bytes, each process of `circle` a share, and compare them with their checksums.

        Raises:
            CheckpointError: with every damaged file and what is wrong with it.
        """
        sizes = {name: record.bytes for name, record in self.manifest.files.items()}
        largest_first = sorted(sizes, key=lambda name: (-sizes[name], name))
        self._verify(largest_first[circle.rank :: circle.world])

    def state(self) -> dict[str, Any]:
        """The plain values that were saved as `state`."""
        path = self.file(STATE)
        try:
            state: dict[str, Any] = from_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"`{path}` cannot be read: {error}") from error
        return state

    def tensors(
        self,
        stem: str,
        device: torch.device | str = "cpu",
        names: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """Tensors that were saved under `stem`, such as "model": all, or those called `names`."""
        if not self._lies_in_pieces(stem):
            return read_tensors(self.file(stem + SUFFIX), device, names)
        found = self.lazy_tensors(stem)
        return {name: found[name].to(device) for name in (found if names is None else names)}

    def lazy_tensors(self, stem: str) -> LazyTensors:
        """The same, read when they are looked up: of many processes each reads what it needs."""
        if not self._lies_in_pieces(stem):
            return open_tensors(self.file(stem + SUFFIX))
        directory = self.file(stem)
        return PieceTensors(sorted(directory.glob(f"*{SUFFIX}")))

    def _lies_in_pieces(self, stem: str) -> bool:
        return any(name.startswith(f"{stem}/") for name in self.manifest.files)

    def file(self, name: str) -> Path:
        """Path of a file or directory of the checkpoint, verified.

        Raises:
            CheckpointError: if there is none, or it is damaged.
        """
        members = [m for m in self.manifest.files if m == name or m.startswith(f"{name}/")]
        if not members:
            hint = nearest(name, {m.split("/")[0] for m in self.manifest.files})
            raise CheckpointError(f"checkpoint `{self.path}` has no `{name}`; {hint}")
        try:
            self._verify(members)
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint `{self.path}` is damaged: {error}") from error
        return self.path / name

    def _verify(self, names: Iterable[str]) -> None:
        problems = []
        for name in names:
            if name not in self._verified:
                problem = content_problem(self.path / name, self.manifest.files[name])
                if problem:
                    problems.append(f"{name} {problem}")
                else:
                    self._verified.add(name)
        self._raise(problems)

    def _raise(self, problems: Iterable[str]) -> None:
        found = list(problems)
        if found:
            raise CheckpointError("; ".join(found))


def read_checkpoint(path: Path, verify: bool = True, circle: Circle = ALONE) -> Checkpoint:
    """The checkpoint in `path`; with `verify` all its bytes are compared with their checksums.

    Args:
        path: its directory.
        verify: whether to read all bytes.
        circle: processes that read it together, each a share of the bytes.

    Raises:
        CheckpointError: if it is damaged, with every problem that any of them found.
    """
    problem: str | None = None
    try:
        checkpoint = Checkpoint(path)
        if verify:
            checkpoint.verify(circle)
    except CheckpointError as error:
        problem = str(error)
    problems = dict.fromkeys(said for said in circle.gather(problem) if said)
    if problems:
        raise CheckpointError("; ".join(problems))
    if verify:
        checkpoint = Checkpoint(path, is_trusted=True)
    if checkpoint.unexpected and circle.rank == 0:
        names = ", ".join(checkpoint.unexpected[:10])
        log.warning(
            "checkpoint `%s` holds files that are not its own, left unread: %s", path, names
        )
    return checkpoint


def find_latest(directory: Path, verify: bool = True, circle: Circle = ALONE) -> Checkpoint | None:
    """The newest whole checkpoint in `directory`; None where there has never been one.

    Args:
        directory: where the checkpoints are.
        verify: whether to read all bytes of it.
        circle: processes that all look for it: the first one chooses, and each reads a share.

    Raises:
        CheckpointError: if there are checkpoints, but all of them are damaged.
    """
    problems: list[str] = []
    for name in circle.first([path.name for path in step_directories(directory)]):
        path = directory / name
        try:
            return read_checkpoint(path, verify, circle)
        except CheckpointError as error:
            if circle.rank == 0:
                log.warning("checkpoint `%s` is skipped: %s", path, error)
            problems.append(f"{name}: {error}")
    if problems:
        raise CheckpointError(
            f"all {len(problems)} checkpoints in `{directory}` are unusable: {' / '.join(problems)}"
        )
    return None


def find_best(
    directory: Path, mode: Mode | None = None, verify: bool = True, circle: Circle = ALONE
) -> Checkpoint | None:
    """The whole checkpoint with the best score, of equal ones the newest; None without scores.

    Args:
        directory: where the checkpoints are.
        mode: whether the smallest or greatest score is best; as the newest one says by default.
        verify: whether to read all bytes of it.
        circle: as in `find_latest`.
    """
    for name in circle.first([c.path.name for c in ranked(sound_checkpoints(directory), mode)]):
        try:
            return read_checkpoint(directory / name, verify, circle)
        except CheckpointError as error:
            if circle.rank == 0:
                log.warning("checkpoint `%s` is skipped: %s", directory / name, error)
    return None


def sound_checkpoints(directory: Path) -> list[Checkpoint]:
    """Checkpoints with a readable manifest and files of the right sizes, newest first."""
    found = []
    for path in step_directories(directory):
        try:
            found.append(Checkpoint(path))
        except CheckpointError as error:
            log.debug("checkpoint `%s` is damaged: %s", path, error)
    return found


def ranked(newest_first: list[Checkpoint], mode: Mode | None) -> list[Checkpoint]:
    """Those that have a score, the best one first, of equal ones the newest first."""
    scored = [c for c in newest_first if c.score is not None]
    if scored and (mode or scored[0].manifest.mode) == "max":
        return sorted(scored, key=lambda c: -_score(c))
    return sorted(scored, key=_score)


def _score(checkpoint: Checkpoint) -> float:
    return math.inf if checkpoint.score is None else checkpoint.score


def open_checkpoint(
    path: Path,
    choose: Literal["auto", "best", "latest"] = "auto",
    verify: bool = True,
    circle: Circle = ALONE,
) -> Checkpoint:
    """The checkpoint that the user means by `path`.

    Args:
        path: directory of one checkpoint, or a run directory.
        choose: which one of a run directory; "auto" takes the best if any has a score.
        verify: whether to read all bytes of it; each file is verified at its first use anyway.
        circle: as in `find_latest`.

    Raises:
        CheckpointError: if there is no whole checkpoint there, saying why.
    """
    directory, problem = path, None
    try:
        directory = _directory(path)
    except CheckpointError as error:
        problem = error
    circle.agree(problem, f"opening `{path}`")
    if circle.first((path / MANIFEST).exists() or bool(_STEP.fullmatch(path.name))):
        try:
            return read_checkpoint(path, verify, circle)
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint `{path}` is damaged: {error}") from error
    found = None if choose == "latest" else find_best(directory, None, verify, circle)
    if found is None and choose == "best":
        raise CheckpointError(f"no whole checkpoint in `{directory}` has a score; take the latest")
    found = found or find_latest(directory, verify, circle)
    if found is None:
        raise CheckpointError(f"`{path}` holds no checkpoint yet: its run has saved nothing so far")
    return found


def _directory(path: Path) -> Path:
    """`path` where it is that of one checkpoint, or the folder with all those of a run."""
    _check_path(path)
    if (path / MANIFEST).exists() or _STEP.fullmatch(path.name) or path.name == CHECKPOINTS:
        return path
    directory = path / CHECKPOINTS
    if not directory.is_dir():
        raise CheckpointError(
            f"`{path}` is not a run directory: it has no folder `{CHECKPOINTS}`; "
            "give the `run_dir` of an earlier run, or one of its checkpoints"
        )
    return directory


def _check_path(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"checkpoint `{path}` {nothing_at(path, folders_only=True)}")
    if path.is_dir():
        return
    if path.suffix in _PICKLES:
        raise CheckpointError(
            f"`{path}` may be a pickle, which can run any code when it is read, so it is not read; "
            "give a run directory or convert the file first"
        )
    raise CheckpointError(f"`{path}` is a file; give a run directory or one of its checkpoints")
