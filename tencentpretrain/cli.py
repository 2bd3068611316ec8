"""What happens between a command line and a run: flags, composing, decoding, errors, exit codes.

Exit codes: 0 done, 1 failure while running, 2 refused before anything was created, 130 and 143
after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import difflib
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

from tencentpretrain.commands import COMMANDS, Command
from tencentpretrain.config import ConfigError, Problem
from tencentpretrain.configure import load_config
from tencentpretrain.errors import UserError
from tencentpretrain.help import help_text, version_text
from tencentpretrain.sweep import sweep
from tencentpretrain.yaml_text import dump_yaml

DONE: Final = 0
FAILED: Final = 1
REFUSED: Final = 2
INTERRUPTED: Final = 130
TERMINATED: Final = 143

FLAGS: Final = {
    "-h": "help",
    "--help": "help",
    "--version": "version",
    "--cfg": "cfg",
    "-m": "multirun",
    "--multirun": "multirun",
}
SURROUNDINGS: Final = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "ENAMETOOLONG", "EIO")
}
"""Failures of the machine, not of the code: a sentence says enough."""


def main(command: str | Command, argv: Sequence[str] | None = None) -> int:
    """Run `command` as `argv` says and return the exit code.

    Args:
        command: A name in `COMMANDS`, or a command of your own.
        argv: Words after the script; those of the process where None.
    """
    command = COMMANDS[command] if isinstance(command, str) else command
    words = list(sys.argv[1:] if argv is None else argv)
    set_up_logging()
    with _sigterm_unwinds():
        try:
            return _main(command, words)
        except BaseException as error:
            said = sentences(error, command)
            code = _ended_together(command, error, said)
            if code is not None:
                return code
            if said is None:
                raise
            for line in said[1]:
                print(line, file=sys.stderr, flush=True)
            return said[0]


Sentences = tuple[int, list[str]]
"""An exit code, and what the user is told."""


def sentences(error: BaseException, command: Command) -> Sentences | None:
    """What a user needs to know of `error`; None for a defect, which needs its traceback."""
    if isinstance(error, ConfigError):
        lines = [f"error: {problem}" for problem in error.problems]
        hint = f"Nothing was started. Every key is explained by: {command.script} --help"
        return REFUSED, [*lines, hint]
    if isinstance(error, UserError):
        return error.exit_code, [f"error: {error}"]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, ["interrupted"]
    if isinstance(error, OSError) and error.errno in SURROUNDINGS:
        return FAILED, [f"error: {error.strerror}" + (f": {error.filename}" * bool(error.filename))]
    return None


def _ended_together(command: Command, error: BaseException, said: Sentences | None) -> int | None:
    """Exit code of all processes of a run, which have told of `error`; None where there is one."""
    if not command.is_shared or os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return None
    from tencentpretrain.distributed.board import end_together  # torch takes two seconds

    return end_together(error, *(said or (FAILED, [])))


def _main(command: Command, words: list[str]) -> int:
    flags, words = _read_flags(words)
    if "help" in flags:
        return _show(help_text(command))
    if "version" in flags:
        return _show(version_text())
    if "multirun" in flags:
        return sweep(command, words)
    config = load_config(command, words)
    if "cfg" in flags:
        return _show(dump_yaml(config.to_dict()))
    code: int = command.run_function()(config)
    return code


def _read_flags(words: list[str]) -> tuple[set[str], list[str]]:
    """Flags by long name, and the words that are none; `--cfg job` is Hydra's way to say `--cfg`.

    Raises:
        ConfigError: with every unknown flag and the nearest right way to say it.
    """
    flags: set[str] = set()
    rest: list[str] = []
    problems: list[Problem] = []
    for position, word in enumerate(words):
        if word == "job" and position and words[position - 1] == "--cfg":
            continue
        word = "--cfg" if word == "--cfg=job" else word
        if word in FLAGS:
            flags.add(FLAGS[word])
        elif word.startswith("-"):
            problems.append(Problem("", f"`{word}` is not a known flag; {_flag_hint(word)}"))
        else:
            rest.append(word)
    if problems:
        raise ConfigError(problems)
    return flags, rest


def _flag_hint(word: str) -> str:
    close = difflib.get_close_matches(word, FLAGS, n=1, cutoff=0.7)
    if close:
        return f"did you mean `{close[0]}`?"
    key = word.lstrip("-") if "=" in word else f"{word.lstrip('-')}=..."
    return f"keys have no dashes: `{key}`"


def _show(text: str) -> int:
    """Print `text`, also where the reader (such as `head`) leaves early."""
    try:
        print(text.rstrip("\n"), flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends; that must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def set_up_logging() -> None:
    """Messages of all modules go to standard error; of several processes, the first speaks."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that temporary files and workers are cleaned up.

    A run that can save sets its own handler later, in place of this one.
    """
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() != owner:  # a forked worker dies in the plain way
            os._exit(TERMINATED)
        raise SystemExit(TERMINATED)

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which alone may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
