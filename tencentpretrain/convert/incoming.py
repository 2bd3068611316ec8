"""Their tensors become those of one of our models; all are accounted for, or all are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from tencentpretrain.convert.report import Report
from tencentpretrain.convert.table import Conversion, Rule, Table, convert
from tencentpretrain.convert.transforms import Numbers
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.train.load import listed, named_tensors
from tencentpretrain.train.tensor_file import LazyTensors


@dataclass(frozen=True)
class Incoming:
    """A model of ours that was somebody else's.

    Args:
        model: Its config.
        tensors: Its weights.
        aside: Their tensors that have no place in it, under their names.
        report: What became of everything.
    """

    model: ModelConfig
    tensors: LazyTensors
    aside: LazyTensors
    report: Report

    @property
    def reads_words(self) -> bool:
        """Whether it has a table of words, for which a tokenizer is needed."""
        return any(name.endswith(".word.weight") for name in self.tensors)


def respell(table: Table, tensors: LazyTensors, report: Report) -> LazyTensors:
    """Their tensors under the names of the table, each once, without those that say nothing.

    Raises:
        CheckpointError: if a tensor that is stored twice has two values.
    """
    names: dict[str, str] = {}
    for name in tensors:
        spelled = table.spelled(name)
        if table.is_recomputed(spelled):
            report.recomputed.append(name)
            continue
        if spelled in names:
            raise CheckpointError(f"`{names[spelled]}` and `{name}` are names of one tensor")
        names[spelled] = name
    for copy, first in table.copies.items():
        if copy in names and first in names:
            check_equal(tensors, names[first], names[copy], "one is a copy of the other")
            report.tied.append(names.pop(copy))
        elif copy in names:
            names[first] = names.pop(copy)
    if table.output_bias is not None:
        _choose_bias(*table.output_bias, names, tensors, report)
    described = {spelled: tensors.described[name] for spelled, name in names.items()}
    return LazyTensors(described, lambda name: tensors[names[name]])


def _choose_bias(
    read: str, stored: str, names: dict[str, str], tensors: LazyTensors, report: Report
) -> None:
    """Keep the bias that the output layer reads, under the name of the one that is stored."""
    if read not in names:
        return
    if stored in names and torch.equal(tensors[names[read]], tensors[names[stored]]):
        report.tied.append(names.pop(read))
        return
    if stored in names:
        report.remarks.append(f"`{names[stored]}` is left out: nothing reads it")
    names[stored] = names.pop(read)


def check_equal(tensors: Mapping[str, torch.Tensor], first: str, second: str, why: str) -> None:
    """Refuse different values of what should be one tensor.

    Raises:
        CheckpointError: naming both.
    """
    left, right = tensors[first], tensors[second]
    if left.shape != right.shape or not torch.equal(left, right):
        raise CheckpointError(f"`{first}` and `{second}` have different values, but {why}")


def receive(
    rules: Sequence[Rule],
    aside: Mapping[str, str],
    tensors: LazyTensors,
    model: ModelConfig,
    vocabulary: int,
    numbers: Numbers,
    allow_unexpected: Sequence[str],
    report: Report,
    target_vocabulary: int | None = None,
) -> Incoming:
    """Make the weights of `model` out of their tensors.

    Args:
        rules: How both are called.
        aside: Patterns of their names that may have no place, and why.
        tensors: Theirs, spelled as in the rules.
        model: Ours.
        vocabulary: Entries of the tokenizer, or rows of the word table without one.
        numbers: Sizes that transforms ask for.
        allow_unexpected: Patterns of their names that nobody needs to know.
        report: To be completed.
        target_vocabulary: As `vocabulary`, of what a decoder writes, if that is another one.

    Raises:
        CheckpointError: with every tensor that is missing, unknown or of another shape.
    """
    conversion = convert(rules, "ours", tensors, numbers)
    problems = [
        f"`{name}` needs {listed(absent)} beside it"
        for name, absent in conversion.incomplete.items()
    ]
    left: list[str] = []
    for name in conversion.unexpected:
        reason = _reason(name, aside, allow_unexpected)
        if reason is None:
            problems.append(f"`{name}` is unknown; allow it with allow_unexpected=['{name}']")
        else:
            left.append(name)
            report.aside[name] = reason
    built = build_model(model, vocabulary, "meta", target_vocabulary=target_vocabulary)
    made = _fitted(conversion, built, report, problems)
    if problems:
        more = f"\n... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError("the tensors do not fit:\n" + "\n".join(problems[:20]) + more)
    kept = LazyTensors({name: tensors.described[name] for name in left}, tensors.__getitem__)
    return Incoming(model, made, kept, report)


def _reason(name: str, aside: Mapping[str, str], allowed: Sequence[str]) -> str | None:
    for pattern, reason in aside.items():
        if re.fullmatch(pattern, name):
            return reason
    if any(fnmatchcase(name, pattern) for pattern in allowed):
        return "you allow it"
    return None


def _fitted(
    conversion: Conversion, built: Model, report: Report, problems: list[str]
) -> LazyTensors:
    """The converted tensors by the names under which the model stores them."""
    tensors, names, known = conversion.tensors, dict[str, str](), set[str]()
    for own, aliases in named_tensors(built):
        known.update(aliases)
        given = [name for name in aliases if name in tensors.described]
        if not given:
            problems.append(f"`{aliases[0]}` of the model is in none of the files")
            continue
        for other in given[1:]:
            check_equal(tensors, given[0], other, "the config says that they are tied")
            report.tied.append(other)
        shape = tensors.described[given[0]].shape
        if shape != own.shape:
            sources = listed(conversion.sources[given[0]])
            problems.append(
                f"`{given[0]}` is {list(own.shape)} by the config, but {list(shape)} in {sources}"
            )
        names[aliases[0]] = given[0]
    problems += [
        f"{listed(conversion.sources[name])} would be `{name}`, which the model has not by its "
        "config"
        for name in tensors
        if name not in known
    ]
    report.converted = sorted(names)
    described = {name: tensors.described[given] for name, given in names.items()}
    return LazyTensors(described, lambda name: tensors[names[name]])
