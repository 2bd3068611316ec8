"""Starting a model from some of the layers of a deeper one (Sanh et al., 2019, DistilBERT)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from torch import Tensor

from tencentpretrain.errors import CheckpointError

Stack = Literal["encoder", "decoder"]
LAYER: Final = re.compile(r"(?P<stack>encoder|decoder)\.layers\.(?P<number>\d+)\.(?P<rest>.+)")


def choose_layers(
    tensors: Mapping[str, Tensor], layers: Mapping[Stack, Sequence[int]]
) -> dict[str, Tensor]:
    """Weights of which only the chosen layers are left, under the names of their new places.

    Args:
        tensors: Weights by name.
        layers: Numbers of the layers to take, in their new order and counted from 1, for each
            stack that is not to stay as it is.

    Raises:
        CheckpointError: if there is no such layer.
    """
    there: dict[str, dict[int, dict[str, Tensor]]] = {}
    chosen: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = LAYER.fullmatch(name)
        if match is None or match["stack"] not in {*layers}:
            chosen[name] = tensor
            continue
        of_stack = there.setdefault(match["stack"], {})
        of_stack.setdefault(int(match["number"]) + 1, {})[match["rest"]] = tensor
    for stack, numbers in layers.items():
        found = there.get(stack, {})
        for place, number in enumerate(numbers):
            if number not in found:
                raise CheckpointError(
                    f"init_layers.{stack} asks for layer {number}, but init has {len(found)} in "
                    "its own right; give numbers from 1 to that"
                )
            for rest, tensor in found[number].items():
                chosen[f"{stack}.layers.{place}.{rest}"] = tensor
    return chosen
