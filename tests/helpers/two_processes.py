"""A function called in two processes that can talk to each other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def in_two_processes(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)` returns of each rank: tensors, and plain data of them."""
    with tempfile.TemporaryDirectory() as folder:
        # Processes that are forked need not import everything again.
        mp.start_processes(_run, (function, folder, arguments), nprocs=WORLD, start_method="fork")
        paths = [Path(folder, f"{rank}.pt") for rank in range(WORLD)]
        return [torch.load(path, weights_only=True) for path in paths]


def _run(rank: int, function: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    try:
        torch.save(function(rank, *arguments), Path(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()
