"""Commands run by several processes that find each other, as torchrun would start them."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from tencentpretrain.cli import main

TIMEOUT = 60
IMPORTED = (
    "tencentpretrain.distributed.parallelize",
    "tencentpretrain.train.finetune",
    "tencentpretrain.train.pretrain",
    "torch._dynamo",
    "torch.utils.tensorboard",
)
"""What processes would import one by one, most of their time, if it was not there already."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port: int = server.getsockname()[1]
        return port


def launch(
    folder: Path,
    world: int,
    words: Sequence[str],
    command: str = "pretrain",
    before: Callable[[int], None] | None = None,
    frozen: Sequence[int] = (),
) -> list[int]:
    """Exit codes of `command` on `world` processes, whose messages go to files in `folder`.

    Args:
        folder: For the messages of each rank, `<rank>.txt`.
        world: Number of processes.
        words: Of the command line.
        command: Name of the command.
        before: Called with the rank in each process, to break something.
        frozen: Ranks that are not waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    for module in IMPORTED:
        importlib.import_module(module)
    # Forked processes need not import everything again.
    context = multiprocessing.get_context("fork")
    arguments = (world, port, folder, command, list(words), before)
    processes = [context.Process(target=_run, args=(rank, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    waited = [rank for rank in range(world) if rank not in frozen]
    for rank in waited:
        processes[rank].join(TIMEOUT)
    hanging = [rank for rank in waited if processes[rank].is_alive()]
    for process in processes:
        process.kill()
        process.join()
    assert not hanging, f"ranks {hanging} hang: {messages(folder)}"
    return [process.exitcode or 0 for process in processes]


def messages(folder: Path) -> dict[str, str]:
    """What each rank has printed."""
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def _run(
    rank: int,
    world: int,
    port: int,
    folder: Path,
    command: str,
    words: list[str],
    before: Callable[[int], Any] | None,
) -> None:
    torch.set_num_threads(1)
    logging.getLogger().handlers.clear()  # those of the test, which would swallow all messages
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    with open(folder / f"{rank}.txt", "w", buffering=1) as output, redirect_stderr(output):
        os.dup2(output.fileno(), sys.__stderr__.fileno() if sys.__stderr__ else 2)
        if before is not None:
            before(rank)
        try:
            code = main(command, words)
        except Exception:
            traceback.print_exc()
            code = 1
    os._exit(code)
