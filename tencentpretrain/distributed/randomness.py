"""Random numbers of one process among those that otherwise draw the same.

The processes of a tensor axis compute one batch, and their generators go in step: what all of them
compute alike has the same dropout. What each has a part of must not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tencentpretrain.data.order import hash_int


def call_apart(
    function: Callable[..., Any], rank: int, device: torch.device, *args: Any, **kwargs: Any
) -> Any:
    """`function` of the arguments, with random numbers of this `rank` alone.

    Their seed is drawn from the common generator of the host. So nothing needs saving beyond what
    seeds that one, and a block that is recomputed with the state it had draws the same again.

    Args:
        function: What draws from the generator of `device`.
        rank: Of this process on the tensor axis.
        device: Where it computes.
        args: Of `function`.
        kwargs: Of `function`.
    """
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    generator = torch.default_generator
    if device.type == "cuda":
        generator = torch.cuda.default_generators[device.index or 0]
    state = generator.get_state()
    generator.manual_seed(hash_int(seed, rank))
    try:
        return function(*args, **kwargs)
    finally:
        generator.set_state(state)
