"""`-m`: all combinations of several values, one process after another.

Every combination is decoded before the first starts, so that a typo costs no half-done sweep. Each
runs in a process and a directory of its own; one that fails does not stop the others. Ctrl-C and
SIGTERM are handed to the running job, which saves, and no other is started. The same command
continues where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

from tencentpretrain.arguments import Argument, alternatives, parse_value, read_arguments
from tencentpretrain.commands import Command
from tencentpretrain.compose import group_options, groups
from tencentpretrain.config import ConfigError, Problem
from tencentpretrain.configure import load_config

LONGEST_NAME: Final = 100
"""Characters in the name of a job's directory."""
SHOWN_METRICS: Final = ("eval/", "dev/")
"""How the names of metrics begin that the table at the end shows."""


@dataclass
class Job:
    """One combination.

    Args:
        changes: The words that differ between jobs.
        words: All words of its command line.
        directory: What it writes.
        code: Its exit code; None where it was not started.
    """

    changes: tuple[str, ...]
    words: tuple[str, ...]
    directory: Path
    code: int | None = None


def sweep(command: Command, words: Sequence[str]) -> int:
    """Run every combination that `words` mean and print a table of the results.

    Returns:
        0 if all jobs succeeded, 1 if any failed, 130 or 143 after Ctrl-C or SIGTERM.

    Raises:
        ConfigError: if any job would be refused; then none is started.
    """
    jobs = plan(command, words)
    _decode_all(command, jobs)
    with _Runner(Path(sys.argv[0])) as runner:
        for number, job in enumerate(jobs, start=1):
            if runner.stopped_by is not None:
                break
            print(f"[{number}/{len(jobs)}] {job.directory}", file=sys.stderr, flush=True)
            job.code = runner.run(job.words)
    print(table(jobs), flush=True)
    if runner.stopped_by is not None:
        return 128 + runner.stopped_by
    return 0 if all(job.code == 0 for job in jobs) else 1


def plan(command: Command, words: Sequence[str]) -> list[Job]:
    """All combinations, in the order of the words, the last one changing fastest.

    Raises:
        ConfigError: if `words` are no sweep.
    """
    problems: list[Problem] = []
    arguments = read_arguments(words, problems)
    given = {argument.key: argument for argument in arguments}
    if os.environ.get("WORLD_SIZE", "1") != "1":
        problems.append(Problem("", "-m starts its jobs itself and must not run under torchrun"))
    base = _base(command, given, problems)
    rest = [argument for argument in arguments if argument.key != command.result]
    choices = [_choices(command, argument, problems) for argument in rest]
    if problems:
        raise ConfigError(problems)
    jobs: list[Job] = []
    total = 1
    for options in choices:
        total *= len(options)
    for number, combination in enumerate(itertools.product(*choices)):
        changes = [w for w, options in zip(combination, choices, strict=True) if len(options) > 1]
        directory = base / _name(number, total, changes)
        job_words = (*combination, f"{command.result}={directory}")
        jobs.append(Job(tuple(changes), job_words, directory))
    return jobs


def _base(command: Command, given: dict[str, Argument], problems: list[Problem]) -> Path:
    """The directory that holds those of the jobs."""
    key = command.result
    if key is None:
        problems.append(
            Problem("", f"{command.name} writes no directory, so it cannot run with -m")
        )
        return Path()
    if key not in given or not given[key].text:
        problems.append(Problem(key, "is required with -m: jobs write into directories below it"))
        return Path()
    return Path(str(parse_value(given[key].text or ""))).expanduser()


def _choices(command: Command, argument: Argument, problems: list[Problem]) -> list[str]:
    """The words that one word means."""
    if argument.text is None:
        return [str(argument)]
    options = group_options(argument.key) if argument.key in groups(command.name) else []
    try:
        return [f"{argument.key}={text}" for text in alternatives(argument.text, options)]
    except ValueError as error:
        problems.append(Problem(argument.key, f"{error}: `{argument.text}`"))
        return []


def _name(number: int, total: int, changes: Sequence[str]) -> str:
    """Such as `03_model-bert-tiny_optim.lr-1e-4`; too long a name ends in a hash."""
    safe = [re.sub(r"[^\w.+-]+", "-", change).strip("-") for change in changes]
    name = "_".join([f"{number:0{len(str(total - 1))}}", *safe])
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}-{digest}"


def _decode_all(command: Command, jobs: Sequence[Job]) -> None:
    """Refuse the sweep if one of its jobs would be refused; name what is wrong once."""
    found: dict[Problem, list[Job]] = {}
    for job in jobs:
        try:
            config = load_config(command, job.words)
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(job)
        else:
            # Interpolations such as ${oc.env:RUNS} are resolved by now.
            job.directory = Path(getattr(config, command.result or "", job.directory))
    problems = []
    for problem, concerned in found.items():
        where = "" if len(concerned) == len(jobs) else f" (with {' '.join(concerned[0].changes)})"
        problems.append(Problem(problem.path, problem.message + where))
    if problems:
        raise ConfigError(problems)


class _Runner:
    """Starts processes and hands signals on to the one that runs."""

    def __init__(self, script: Path) -> None:
        self.script = script
        self.stopped_by: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, words: Sequence[str]) -> int:
        """Exit code of the script called with `words`; 128 + number if a signal ended it."""
        command = [sys.executable, str(self.script), *words]
        # A process group of its own: a Ctrl-C in the terminal reaches the job once, through us.
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
        if self.stopped_by is not None:
            self._hand_on(self.stopped_by)
        code = self._child.wait()
        self._child = None
        return code if code >= 0 else 128 - code

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = number
        self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def table(jobs: Sequence[Job]) -> str:
    """Job, what it changes, its exit code and its last evaluation, in columns."""
    rows = [("job", "overrides", "exit", "last evaluation")]
    for job in jobs:
        code = "not run" if job.code is None else str(job.code)
        rows.append((job.directory.name, " ".join(job.changes), code, _last_metrics(job.directory)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _last_metrics(directory: Path) -> str:
    """The last value of every evaluation metric in `metrics.jsonl`; the loss comes first."""
    file = directory / "metrics.jsonl"
    if not file.is_file():
        return ""
    last: dict[str, float] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a killed job was writing
        for name, value in record.items():
            if name.startswith(SHOWN_METRICS) and isinstance(value, int | float):
                last[name] = value
    names = sorted(last, key=lambda name: (not name.endswith("loss"), name))
    return " ".join(f"{name}={last[name]:.4g}" for name in names)
