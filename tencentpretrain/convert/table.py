"""Names of tensors here and elsewhere as data, and reading such a table in either direction.

Names are templates: `{n}` stands for the number of a layer and `{n-1}` for that of the one before,
`{p}` for weight or bias, `{r}` for a tensor of a recurrent layer. A rule relates one or several of
our tensors to one or several of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

import torch
from torch import Tensor

from tencentpretrain.convert.transforms import SAME, Numbers, Transform
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors

Direction = Literal["ours", "theirs"]
"""Whose tensors a conversion makes."""
_PLACES: Final = {
    "{n}": r"(?P<n>\d+)",
    "{n-1}": r"(?P<before>\d+)",
    "{p}": r"(?P<p>weight|bias)",
    "{r}": r"(?P<r>(weight|bias)_[ih]h)",
}


@dataclass(frozen=True)
class Rule:
    """Which of our tensors hold the values of which of theirs.

    Args:
        ours: Templates of our names.
        theirs: Templates of theirs.
        transform: How.
        only: A number, and the value that it has in the models that the rule is for.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transform: Transform = SAME
    only: tuple[str, int] | None = None

    def names(self, direction: Direction) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Templates of what is read and of what is made."""
        return (self.theirs, self.ours) if direction == "ours" else (self.ours, self.theirs)

    def apply(self, direction: Direction, tensors: list[Tensor], numbers: Numbers) -> list[Tensor]:
        """Make the tensors of one side out of those of the other."""
        if direction == "ours":
            return self.transform.to_ours(tensors, numbers)
        return self.transform.to_theirs(tensors, numbers)


def modules(
    names: Mapping[str, str],
    ours: str = "",
    theirs: str = "",
    transform: Transform = SAME,
    only: tuple[str, int] | None = None,
) -> tuple[Rule, ...]:
    """A rule for weight and bias of each module, `{our name: their name}` below two prefixes."""
    return tuple(
        Rule((f"{ours}{name}.{{p}}",), (f"{theirs}{other}.{{p}}",), transform, only)
        for name, other in names.items()
    )


@dataclass(frozen=True)
class Table:
    """How the tensors of one family are called.

    Args:
        rules: What is learned.
        recomputed: Patterns of their names that hold nothing learned, such as masks.
        spellings: Patterns of their older names and what replaces the match, applied in turn.
        copies: Their names of tensors that are stored a second time, and the name of the first.
        output_bias: The name by which the output layer reads its bias, and the one under which it
            is stored; two tensors where the layer is not the word table.
    """

    rules: tuple[Rule, ...]
    recomputed: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    output_bias: tuple[str, str] | None = None

    @cached_property
    def _spellings(self) -> list[tuple[re.Pattern[str], str]]:
        return [(re.compile(pattern), new) for pattern, new in self.spellings]

    def spelled(self, name: str) -> str:
        """Their name as the rules write it."""
        for pattern, new in self._spellings:
            name = pattern.sub(new, name)
        return name

    def is_recomputed(self, name: str) -> bool:
        """Whether their tensor of this name follows from the config."""
        return any(re.fullmatch(pattern, name) for pattern in self.recomputed)


@dataclass
class Conversion:
    """What a table makes of a set of tensors.

    Args:
        tensors: Those made, by name.
        sources: Names of what each one was made of.
        unexpected: Names that no rule has.
        incomplete: Names that a rule has, and those that it needs besides, but were not there.
    """

    tensors: LazyTensors
    sources: dict[str, tuple[str, ...]]
    unexpected: list[str]
    incomplete: dict[str, list[str]]


def convert(
    rules: Sequence[Rule], direction: Direction, tensors: LazyTensors, numbers: Numbers
) -> Conversion:
    """Make one side's tensors out of the other's, each when it is looked up.

    Raises:
        CheckpointError: if a tensor has a shape that its rule cannot take.
    """
    described: dict[str, Tensor] = {}
    made: dict[str, tuple[Rule, tuple[str, ...], int]] = {}
    incomplete: dict[str, list[str]] = {}
    valid = [rule for rule in rules if rule.only is None or numbers[rule.only[0]] == rule.only[1]]
    groups, unexpected = _grouped(valid, direction, tensors)
    for rule, names, results in groups:
        absent = [name for name in names if name not in tensors.described]
        if absent:
            incomplete |= {name: absent for name in names if name in tensors.described}
            continue
        shapes = _describe(rule, direction, names, tensors, numbers)
        for part, (result, shape) in enumerate(zip(results, shapes, strict=True)):
            described[result] = shape
            made[result] = rule, names, part

    def read(name: str) -> Tensor:
        rule, names, part = made[name]
        return rule.apply(direction, [tensors[n] for n in names], numbers)[part]

    sources = {name: names for name, (_, names, _) in made.items()}
    return Conversion(LazyTensors(described, read), sources, unexpected, incomplete)


def _grouped(
    rules: Sequence[Rule], direction: Direction, tensors: LazyTensors
) -> tuple[list[tuple[Rule, tuple[str, ...], tuple[str, ...]]], list[str]]:
    """Rules with the names that they read and make, and the names that no rule has."""
    patterns = [
        (rule, _compile(template)) for rule in rules for template in rule.names(direction)[0]
    ]
    groups: dict[tuple[str, ...], tuple[Rule, tuple[str, ...], tuple[str, ...]]] = {}
    unexpected = []
    for name in tensors:
        found = next(_matches(name, patterns), None)
        if found is None:
            unexpected.append(name)
            continue
        rule, values = found
        sources, results = (
            tuple(_fill(template, values) for template in side) for side in rule.names(direction)
        )
        assert name in sources, name
        groups[sources] = rule, sources, results
    return list(groups.values()), unexpected


def _matches(
    name: str, patterns: list[tuple[Rule, re.Pattern[str]]]
) -> Iterator[tuple[Rule, dict[str, str]]]:
    for rule, pattern in patterns:
        match = pattern.fullmatch(name)
        if match:
            values = match.groupdict()
            if "before" in values:
                values["n-1"] = values.pop("before")
                values["n"] = str(int(values["n-1"]) + 1)
            elif "n" in values:
                values["n-1"] = str(int(values["n"]) - 1)
            yield rule, values


def _compile(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for place, group in _PLACES.items():
        pattern = pattern.replace(re.escape(place), group)
    return re.compile(pattern)


def _fill(template: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        template = template.replace(f"{{{key}}}", value)
    return template


def _describe(
    rule: Rule,
    direction: Direction,
    names: tuple[str, ...],
    tensors: LazyTensors,
    numbers: Numbers,
) -> list[Tensor]:
    """Shapes and types of what a rule makes."""
    described = [tensors.described[name] for name in names]
    try:
        with torch.device("meta"):
            return rule.apply(direction, described, numbers)
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(f"`{n}` {list(t.shape)}" for n, t in zip(names, described, strict=True))
        raise CheckpointError(
            f"{shapes} cannot become {', '.join(rule.names(direction)[1])}: {error}"
        ) from error
