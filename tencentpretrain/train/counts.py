"""What modules count while they train, such as how often a code is taken, over all processes.

A module lists the buffers that it adds to as `counters`. Each rank of data counts what it sees, so
that the whole is the sum over ranks; the first one has what was counted before the last saving.
"""

from __future__ import annotations

from torch import Tensor

from tencentpretrain.distributed.parallel import Parallel
from tencentpretrain.model import Model


def counters(model: Model) -> list[Tensor]:
    """All buffers in which modules of `model` count."""
    modules = list(model.modules())
    return [getattr(m, name) for m in modules for name in getattr(m, "counters", ())]


def gather_counts(model: Model, parallel: Parallel) -> None:
    """Let the first rank have what all have counted, as it is saved."""
    for counter in counters(model):
        counter.copy_(parallel.sum({"": counter})[""])
    keep_counts_once(model, parallel)


def keep_counts_once(model: Model, parallel: Parallel) -> None:
    """Let the others count anew, where all have the sum, as after loading it."""
    if parallel.rank:
        for counter in counters(model):
            counter.zero_()
