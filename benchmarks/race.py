"""Contestants that take turns, so that a machine whose speed drifts is fair to all of them.

Each has a process of its own, since what one does to the memory of its process would help or harm
the others; only one of them computes at a time.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

Turn = Callable[[int], int]
"""Does a number of steps and returns how many units (tokens, images) they read."""


def finish() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def answer(asked: Connection, turn: Turn) -> None:
    """Do as many steps as is asked for, and tell how many tokens or images a second they read."""
    while (steps := asked.recv()) is not None:
        start = time.perf_counter()
        tokens = turn(steps)
        finish()
        asked.send(tokens / (time.perf_counter() - start))


def compete(
    contestants: Mapping[str, Callable[[Any, Connection], None]],
    track: Any,
    rounds: int,
    steps: int,
) -> dict[str, list[float]]:
    """Units a second of each contestant in each round but the first.

    Args:
        contestants: Functions of a module, by name; each is given the track and a connection,
            through which it is asked for a number of steps and answers with units a second.
        track: What they need to know.
        rounds: How many rounds count.
        steps: Steps of a turn.
    """
    context = multiprocessing.get_context("spawn")
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    asking, processes = {}, []
    for name, run in contestants.items():
        asking[name], asked = context.Pipe()
        processes.append(context.Process(target=run, args=(track, asked)))
        processes[-1].start()
        asked.close()
    try:
        for _ in range(rounds + 1):
            for name, connection in asking.items():
                connection.send(steps)
                rates[name].append(connection.recv())
        for connection, process in zip(asking.values(), processes, strict=True):
            connection.send(None)
            process.join()
    finally:
        # After an error of one, the others would wait for ever.
        for process in processes:
            process.terminate()
            process.join()
    return {name: own[1:] for name, own in rates.items()}
