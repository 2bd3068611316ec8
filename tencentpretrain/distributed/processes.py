"""The processes of a run: which they are, and small things that they tell each other.

`torchrun` starts them and says in their environment how many there are. What they tell each other
goes as bytes of JSON in tensors, never as pickles.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist

from tencentpretrain.config import ConfigError
from tencentpretrain.errors import UserError

VARIABLES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LAUNCH: Final = "torchrun --nproc-per-node N pretrain.py ... parallel=ddp"


SIGNS: Final = ("connection closed by peer", "connection reset by peer", "timed out waiting")
"""What torch's errors say where a process is gone, in lower case."""


class RemoteError(UserError):
    """Another process of the run could not go on."""

    exit_code = 1


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Args:
        rank: Number among all processes.
        world: How many there are.
        local: Number among those of this machine, which is that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def find(cls, environment: Mapping[str, str] = os.environ) -> Place:
        """What the launcher has said in `environment`; alone where nothing.

        Raises:
            ConfigError: if only a part is said, or it is no number in its range.
        """
        said = [name for name in VARIABLES if environment.get(name)]
        if not {"RANK", "WORLD_SIZE"} & set(said):
            return cls()
        absent = [name for name in VARIABLES if name not in said]
        if absent:
            raise ConfigError.at(
                "parallel",
                f"{', '.join(said)} are set in the environment, but {', '.join(absent)} are not; "
                f"start processes with torchrun, which sets all of them ({LAUNCH}), or unset them",
            )
        numbers = {}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            if not environment[name].isdecimal():
                message = f"the environment variable {name} must be a number, but is "
                raise ConfigError.at("parallel", f"{message}`{environment[name]}`")
            numbers[name] = int(environment[name])
        rank, world = numbers["RANK"], numbers["WORLD_SIZE"]
        if rank >= world:
            raise ConfigError.at("parallel", f"RANK={rank} must be below WORLD_SIZE={world}")
        return cls(rank, world, numbers["LOCAL_RANK"])


class Circle:
    """What a few processes tell each other on the host, over a group of their own.

    Args:
        group: Of processes, over gloo; None where this process is alone.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world = 1 if group is None else dist.get_world_size(group)

    def gather(self, value: object) -> list[Any]:
        """What each process has to say, as plain JSON data, in the order of their ranks."""
        if self._group is None:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.world, dtype=torch.int64)
        sizes[self.rank] = len(data)
        dist.all_reduce(sizes, group=self._group)
        most = int(sizes.max())
        padded = torch.zeros(most, dtype=torch.uint8)
        padded[: len(data)] = data
        rows = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(rows, padded, group=self._group)
        return [
            json.loads(row[:size].numpy().tobytes())
            for row, size in zip(rows, sizes.tolist(), strict=True)
        ]

    def first(self, value: object) -> Any:
        """What the first process says; the others need not know it."""
        return self.gather(value if self.rank == 0 else None)[0]

    def agree(self, error: BaseException | None, doing: str) -> None:
        """Fail on all processes where one has failed, so that none waits for it.

        Raises:
            RemoteError: naming the processes that failed and why, where this one did not.
            BaseException: `error` itself where it did.
        """
        said = self.gather(None if error is None else (str(error) or type(error).__name__))
        if error is not None:
            raise error
        failed = [f"rank {rank}: {what}" for rank, what in enumerate(said) if what is not None]
        if failed:
            raise RemoteError(f"{doing} failed on {'; '.join(failed)}")


ALONE: Final = Circle(None)
"""This process alone."""


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Wait until `is_so`, at most for so many `seconds`; signals are heard meanwhile."""
    began = time.monotonic()
    while not is_so():
        waited = time.monotonic() - began
        if waited > seconds:
            return False
        time.sleep(min(max(0.002, 0.05 * waited), 0.5))
    return True


def is_loss(error: RuntimeError) -> bool:
    """Whether an error of torch says that another process is gone or does not answer."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return "gloo" in text or any(sign in text for sign in SIGNS)


def first_line(error: BaseException) -> str:
    """The beginning of what an error says: torch's have a stack behind it."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
