"""Where the processes of a run meet before they train, and tell each other why they end.

Collectives hang or break where one process has left, and say nothing of its reason. So processes
meet by means of the store that they found each other through: who fails leaves its reason there,
whoever waits for it finds that, and all end with one exit code, told once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import ClassVar, Final

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tencentpretrain.config import ConfigError
from tencentpretrain.distributed.attempt import attempt_name
from tencentpretrain.distributed.processes import (
    Place,
    RemoteError,
    first_line,
    is_loss,
    wait_until,
)
from tencentpretrain.errors import UserError

GRACE: Final = 10.0
"""Seconds for which a process waits for others that may be gone without a word."""
PATIENCE: Final = 60.0
"""Seconds for which a process that ends looks for others that are there, but busy."""


class UnreachableError(UserError):
    """A process cannot find the others of its run."""


@dataclass(frozen=True)
class Failure:
    """Why a process ends.

    Args:
        rank: Which one.
        code: Its exit code.
        lines: What the user is told.
        trace: Where it happened, if that is a defect.
        phase: What it was doing.
        is_loss: Whether it ends because another one has, without a word.
        meeting: Number of the meeting that it does not come to.
    """

    rank: int
    code: int
    lines: list[str]
    trace: str
    phase: str
    is_loss: bool = False
    meeting: int = 0

    def who(self, world: int) -> str:
        """Beginning of a sentence about it, of one of so many processes."""
        return f"rank {self.rank} of {world}, while {self.phase}: "


class Board:
    """What the processes of a run know of each other while they do not train.

    Args:
        store: That all of them reach; the first process, or its launcher, holds it.
        place: Which process this is.
        timeout: Seconds after which one that does not come is given up.
    """

    current: ClassVar[Board | None] = None
    """That of this process, since it has met the others: a launcher starts one run."""

    def __init__(self, store: Store, place: Place, timeout: float) -> None:
        self._store = store
        self.place, self.timeout = place, timeout
        self.phase = "reading the config"
        self.is_training = False
        """Whether each process speaks for itself: those that compute together notice a loss."""
        self._meetings = 0
        self._seen: list[Failure] = []

    def begin(self, phase: str, is_training: bool = False) -> None:
        """Go on to `phase` when all are through with what was before.

        Args:
            phase: For messages.
            is_training: Whether from now on each process speaks for itself.

        Raises:
            RemoteError: if one of them has failed, or does not come.
        """
        self._meetings += 1
        meeting, place = f"meeting/{self._meetings}", self.place
        try:
            self._store.set(f"{meeting}/{place.rank}", "")
            if self._store.add(f"{meeting}/count", 1) == place.world:
                self._store.set(meeting, "")
            if not wait_until(lambda: self._store.check([meeting]), self.timeout):
                ranks = range(place.world)
                absent = [r for r in ranks if not self._store.check([f"{meeting}/{r}"])]
                raise RemoteError(
                    f"rank(s) {absent} of {place.world} were not through with {self.phase} after "
                    f"{self.timeout:g} s; see their messages, or give a longer parallel.timeout"
                )
            # What happened behind this meeting maybe happens to all, and is found at the next one.
            failures = [f for f in self.failures() if f.meeting <= self._meetings]
        except RuntimeError as error:
            raise RemoteError(
                f"rank {place.rank} of {place.world} lost the first one while {self.phase}: "
                f"{first_line(error)}"
            ) from error
        if failures:
            raise RemoteError(failures[0].who(place.world) + failures[0].lines[0])
        self.phase, self.is_training = phase, is_training

    def count(self, what: str, is_so: bool, phase: str) -> int:
        """Of how many processes `what` is so, when all go on to `phase`; see `begin`."""
        self._store.add(f"count/{what}", int(is_so))
        self.begin(phase)
        return self._store.add(f"count/{what}", 0)

    def failures(self) -> list[Failure]:
        """What has failed so far, the first one first."""
        for number in range(len(self._seen), self._store.add("failures", 0)):
            self._seen.append(Failure(**json.loads(self._store.get(f"failure/{number + 1}"))))
        return self._seen

    def finish(self) -> None:
        """Take leave of the others, when all are done.

        Raises:
            RemoteError: if one of them has failed, or does not come.
        """
        self.begin("ending")
        Board.current = None
        self._go()
        if self.place.rank == 0:  # its store is needed until the last one has seen that all are
            wait_until(self._are_gone, GRACE)

    def end(self, own: Failure | None) -> int | None:
        """End where this process, with `own`, or another one has failed.

        Returns:
            The exit code of all; None if none has failed.

        Raises:
            RuntimeError: if the first process is gone.
        """
        try:
            if own is not None:
                self._fail(own)
            failures = self.failures()
            if not failures:
                return None
            if self.place.rank == 0:
                self._speak()
            elif own is not None and not wait_until(self._are_told, GRACE):
                say(own)
            return failures[0].code
        finally:
            self._go()

    def _fail(self, failure: Failure) -> None:
        """Leave `failure` for the others, and wake those who wait at the next meeting."""
        number = self._store.add("failures", 1)
        failure = replace(failure, meeting=self._meetings + 1)
        self._store.set(f"failure/{number}", json.dumps(asdict(failure)))
        self._store.set(f"meeting/{failure.meeting}", "")

    def _speak(self) -> None:
        """Tell of what others have met, each thing once, until all of them are gone."""
        # What this process has met itself, it has told before.
        told = {tuple(f.lines) for f in self.failures() if f.rank == 0}

        def is_over() -> bool:
            is_last_look = self._are_gone()
            for failure in self.failures():
                if tuple(failure.lines) not in told:
                    say(failure, failure.who(self.place.world))
                told.add(tuple(failure.lines))
            self._store.set("told", "")
            return is_last_look

        # Who was killed does not say that it is gone, and who waits for this process in a
        # collective is woken only when this one is gone.
        is_lost = any(failure.is_loss for failure in self.failures())
        wait_until(is_over, GRACE if is_lost else min(PATIENCE, self.timeout))

    def _are_told(self) -> bool:
        return self._store.check(["told"])

    def _are_gone(self) -> bool:
        return self._store.add("gone", 0) == self.place.world - 1

    def _go(self) -> None:
        """Say that this process is gone: it needs the others no more."""
        if self.place.rank:
            with suppress(RuntimeError):  # so is the first one, and nobody waits
                self._store.add("gone", 1)


def open_store(place: Place, timeout: float) -> Store:
    """The store that all processes reach, and a board of this one in it.

    Raises:
        RuntimeError: if it cannot be reached, or ValueError, as torch says it.
    """
    shared, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    store = PrefixStore(attempt_name(shared, place, timeout), shared)
    Board.current = Board(PrefixStore("board", store), place, timeout)
    return PrefixStore("groups", store)


def join(place: Place, device: torch.device, timeout: float) -> Board | None:
    """Make the process group; a lone process makes one of its own, without a port.

    Args:
        place: Which process this is.
        device: Of its model, which decides how tensors travel.
        timeout: Seconds after which a process that does not answer is given up.

    Returns:
        Where it meets the others; None if there are none.

    Raises:
        UnreachableError: if the others cannot be reached.
        ConfigError: if some would compute on GPUs and some on the CPU.
        RemoteError: if one of them has failed already.
    """
    if dist.is_initialized():
        return Board.current
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        if place.world == 1:
            store: Store = dist.HashStore()  # type: ignore[attr-defined]  # not listed
        else:
            store = open_store(place, timeout)
            assert Board.current is not None
            on_gpus = Board.current.count("on GPUs", device.type == "cuda", "joining the others")
            if 0 < on_gpus < place.world:
                raise ConfigError.at(
                    "parallel.device",
                    f"is auto, but {on_gpus} of {place.world} processes have a GPU and the others "
                    "have none; give parallel.device=cpu, or leave out machines without GPUs",
                )
        dist.init_process_group(
            backend,
            store=store,
            rank=place.rank,
            world_size=place.world,
            timeout=timedelta(seconds=timeout),
        )
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UnreachableError(
            f"rank {place.rank} of {place.world} cannot join the others at {address} within "
            f"{timeout:g} s: {first_line(error)}; check that all were started, that the address "
            "can be reached, and that its port is free (torchrun --master-port)"
        ) from error
    return Board.current


def leave() -> None:
    """Leave the process group, where there is one."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def end_together(error: BaseException, code: int, lines: list[str]) -> int | None:
    """Let all processes of the run end because of `error`, and the first one tell of it once.

    Args:
        error: What ends this process.
        code: Its exit code, if it were alone.
        lines: What the user is told of it; empty for a defect, whose traceback is told.

    Returns:
        The exit code of all; None where this process ends alone and speaks for itself, as while
        training.
    """
    board = Board.current
    if isinstance(error, UnreachableError) or (board is not None and board.is_training):
        return None
    try:
        place = Place.find()
    except ConfigError:
        return None
    own: Failure | None = None
    if not isinstance(error, RemoteError | KeyboardInterrupt | SystemExit):
        phase = "reading the config" if board is None else board.phase
        own = failure_of(error, code, lines, place.rank, phase)
    try:
        if board is not None and own is not None and own.is_loss and board.failures():
            own = None  # those who are gone have said why
        if own is not None and place.rank == 0:
            say(own)
        if board is None:
            if own is None:
                return None
            open_store(place, PATIENCE)
            board = Board.current
            assert board is not None
        return board.end(own)
    except (RuntimeError, ValueError):  # there is nobody any more, or there never was
        if own is None:
            return None
        if place.rank:  # nobody else can tell of it
            say(own, own.who(place.world))
        return code


def failure_of(error: BaseException, code: int, lines: list[str], rank: int, phase: str) -> Failure:
    """What there is to be said of `error`; see `end_together`."""
    if lines:
        return Failure(rank, code, lines, "", phase)
    is_lost = isinstance(error, RuntimeError) and is_loss(error)
    what = "lost another process" if is_lost else type(error).__name__
    trace = "" if is_lost else "".join(traceback.format_exception(error)).rstrip()
    return Failure(rank, code, [f"error: {what}: {first_line(error)}"], trace, phase, is_lost)


def say(failure: Failure, who: str = "") -> None:
    """Tell the user of `failure`, and `who` has met it."""
    first, *others = failure.lines
    first = f"error: {who}{first.removeprefix('error: ')}" if who else first
    for line in [failure.trace] * bool(failure.trace) + [first, *others]:
        print(line, file=sys.stderr, flush=True)
