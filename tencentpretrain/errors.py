"""Errors that a user can mend: one readable sentence each, printed without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something outside the code is wrong; the message says what, and what to do about it."""

    exit_code: int = 1
    """What the process ends with: 1 for a failure while running, 2 if nothing had begun."""


class DataError(UserError):
    """A corpus, shard, table or tokenizer cannot be used."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class TrainingError(UserError):
    """Training cannot go on, for instance because the loss is not finite."""


@contextmanager
def named(where: str) -> Iterator[None]:
    """Say in whose bytes is wrong what is found wrong inside.

    Raises:
        DataError: any that is raised inside, with `where` in front.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


@contextmanager
def before_start() -> Iterator[None]:
    """Hold the checks of a run, while nothing has been created: an error in here is a refusal.

    Raises:
        UserError: any that is raised inside, with the exit code 2 of a refusal.
    """
    try:
        yield
    except UserError as error:
        error.exit_code = 2
        raise
