"""Where the weights of one of our models lie in the class of `transformers` that computes the same.

Adapters of `peft` are called by modules of that class. Shapes: O rows and I columns of a weight, K
any number of columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tencentpretrain.convert.huggingface import numbers_of
from tencentpretrain.convert.outgoing import Outgoing
from tencentpretrain.convert.table import convert
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import ModelConfig
from tencentpretrain.train.load import listed
from tencentpretrain.train.tensor_file import LazyTensors

WEIGHT = ".weight"


@dataclass(frozen=True)
class Place:
    """A module of theirs and those of ours whose weights its weight holds.

    Args:
        theirs: Its path.
        ours: Names of ours, in the order in which they lie there.
        sizes: O of each of ours.
        shape: O and I of its weight, as it would lie in a linear layer.
        is_transposed: Whether its weight is stored as [I, O].
    """

    theirs: str
    ours: tuple[str, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, int]
    is_transposed: bool


class Places:
    """All modules with a weight of two dimensions, by their names here and there.

    Args:
        outgoing: The model as one of theirs.
        model: Its config here.
        tensors: Its weights here.
    """

    def __init__(self, outgoing: Outgoing, model: ModelConfig, tensors: LazyTensors) -> None:
        self.family = outgoing.family
        self._rules = self.family.rules(model.target)
        settings = self.family.settings(outgoing.config)
        self.numbers = numbers_of(self.family, settings, model)
        is_bare = outgoing.config["architectures"] == [self.family.architectures.get("")]
        self._prefix = self.family.prefix if is_bare else ""
        self._found = convert(self._rules, "theirs", tensors, self.numbers)
        self._tensors = tensors
        self.by_ours: dict[str, Place] = {}
        for theirs, ours in self._found.sources.items():
            if theirs.endswith(WEIGHT) and tensors.described[ours[0]].dim() == 2:
                place = self._place(theirs, ours)
                self.by_ours |= dict.fromkeys(place.ours, place)
        self.by_theirs = {place.theirs: place for place in self.by_ours.values()}

    def _place(self, theirs: str, ours: Sequence[str]) -> Place:
        sizes = tuple(self._tensors.described[name].shape[0] for name in ours)
        # A number of columns that no number of rows can be tells which of both is which.
        columns = 2 * sum(sizes) + 1
        probe = {
            n: torch.empty(s, columns, device="meta") for n, s in zip(ours, sizes, strict=True)
        }
        made = convert(self._rules, "theirs", LazyTensors.of(probe), self.numbers)
        is_transposed = made.tensors.described[theirs].shape[0] == columns
        rows, inputs = self._found.tensors.described[theirs].shape
        return Place(
            theirs.removesuffix(WEIGHT).removeprefix(self._prefix),
            tuple(name.removesuffix(WEIGHT) for name in ours),
            sizes,
            (inputs, rows) if is_transposed else (rows, inputs),
            is_transposed,
        )

    def weight(self, module: str) -> Tensor:
        """The weight of one of our modules."""
        return self._tensors[f"{module}{WEIGHT}"]

    def path(self, name: str) -> str:
        """Path of one of their modules as their files may spell it, as it is called here."""
        spelled = self.family.table.spelled(f"{name}{WEIGHT}").removesuffix(WEIGHT)
        return spelled.removeprefix(self._prefix)

    def to_theirs(self, place: Place, blocks: Sequence[Tensor]) -> Tensor:
        """Rows [O, K] of their weight out of those of ours, as they lie in a linear layer."""
        named = {f"{n}{WEIGHT}": block for n, block in zip(place.ours, blocks, strict=True)}
        theirs = f"{self._prefix}{place.theirs}{WEIGHT}"
        made = convert(self._rules, "theirs", LazyTensors.of(named), self.numbers).tensors[theirs]
        return (made.t() if place.is_transposed else made).contiguous()

    def to_ours(self, place: Place, rows: Tensor) -> list[Tensor]:
        """Rows [O, K] of each of ours out of those of theirs."""
        stored = rows.t() if place.is_transposed else rows
        named = {f"{self._prefix}{place.theirs}{WEIGHT}": stored}
        made = convert(self._rules, "ours", LazyTensors.of(named), self.numbers).tensors
        return [made[f"{name}{WEIGHT}"].contiguous() for name in place.ours]

    def whole_to_theirs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of ours, such as those of a head, under their names.

        Raises:
            CheckpointError: if some have no place there, or share one with others.
        """
        made = convert(self._rules, "theirs", LazyTensors.of(tensors), self.numbers)
        lost = [*made.unexpected, *made.incomplete]
        if lost:
            raise CheckpointError(f"{listed(lost)} cannot be called as in transformers")
        return {name.removeprefix(self._prefix): made.tensors[name] for name in made.tensors}
