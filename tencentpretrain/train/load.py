"""Weights by name, out of and into models; nothing is left out silently.

A tensor under several names of a model (tied parameters) is stored once, under the first of them,
and found again under any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import Tensor, nn

from tencentpretrain.distributed.layout import local_box, local_part
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors, part_of

LISTED: Final = 10
"""How many names of a kind a message lists."""
Named = list[tuple[Tensor, list[str]]]
"""Tensors of a model with all names that they have in it."""


@dataclass
class LoadReport:
    """What became of every tensor of a file and of a model, by name."""

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """In the model, not in the file: keep their initial values."""
    unexpected: list[str] = field(default_factory=list)
    """In the file, not in the model: not read."""
    mismatched: dict[str, str] = field(default_factory=dict)
    """Of another shape or kind in the file, and how: keep their initial values."""
    converted: dict[str, str] = field(default_factory=dict)
    """Read into another precision, and which."""
    resized: dict[str, str] = field(default_factory=dict)
    """Interpolated to another shape, and how."""

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        parts = [f"{len(self.matched)} of {total} tensors match"]
        for kind in ("missing", "unexpected", "mismatched", "converted"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{len(names)} {kind}: {listed(names)}")
        if self.resized:
            how = ", ".join(f"`{name}` from {change}" for name, change in self.resized.items())
            parts.append(f"{len(self.resized)} resized: {how}")
        return "; ".join(parts)


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each tensor once, without copying."""
    return {names[0]: tensor.detach() for tensor, names in named_tensors(module)}


def load_weights(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    allow_mismatched: Sequence[str] = (),
) -> LoadReport:
    """Copy `tensors` into the parameters and buffers of `module`, all of them or none.

    Where a shape differs, the module that owns the tensor may know what to make of it: it has a
    method `resized(name, value)`, which returns a tensor of its own shape, or None.

    Args:
        module: the model; not on the meta device.
        tensors: by name; types of another precision are converted.
        allow_missing: patterns of dotted names, such as "target.*", that the file may lack.
        allow_unexpected: patterns of names that the model may lack.
        allow_mismatched: patterns of names whose shapes may differ; these are not loaded.

    Raises:
        CheckpointError: if a name is missing, unexpected or mis-shaped and not allowed, if tied
            names have different values, or if nothing matches at all.
    """
    named = named_tensors(module)
    report = LoadReport()
    chosen = _match(module, named, tensors, report)
    _check_some(report, named, tensors)
    allowed = {
        "missing": allow_missing,
        "unexpected": allow_unexpected,
        "mismatched": allow_mismatched,
    }
    _check_allowed(report, allowed, {name: names for _, names in named for name in names})
    with torch.no_grad():
        for own, value in chosen:
            box = local_box(own)
            part = part_of(tensors, value, box) if isinstance(value, str) else value[box.slices]
            local_part(own).copy_(part)
    return report


def named_tensors(module: nn.Module) -> Named:
    """Every tensor of the model's state with all names it has."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` of the model's state must be a tensor, but is {tensor!r}")
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    return list(found.values())


def listed(names: Iterable[str]) -> str:
    """The first of `names` for a message, and how many more there are."""
    names = list(names)
    more = f", ... ({len(names) - LISTED} more)" if len(names) > LISTED else ""
    return ", ".join(f"`{name}`" for name in names[:LISTED]) + more


def _resized(module: nn.Module, name: str, value: Tensor, own: Tensor) -> Tensor | None:
    """What the module that owns `name` makes of a `value` of another shape; None if nothing."""
    owner, _, attribute = name.rpartition(".")
    resize = getattr(module.get_submodule(owner), "resized", None)
    made: Tensor | None = None if resize is None else resize(attribute, value)
    return made if made is not None and made.shape == own.shape else None


def _match(
    module: nn.Module, named: Named, tensors: Mapping[str, Tensor], report: LoadReport
) -> list[tuple[Tensor, Tensor | str]]:
    """Fill `report`; returns the model's own tensors with what belongs into them, by name.

    What is read only when it is looked up must not all be in memory at once.
    """
    chosen: list[tuple[Tensor, Tensor | str]] = []
    described = tensors.described if isinstance(tensors, LazyTensors) else tensors
    for own, names in named:
        given = [name for name in names if name in tensors]
        if not given:
            report.missing.append(names[0])
            continue
        value = described[given[0]]
        _check_equal(given, tensors)
        made = None
        if value.shape != own.shape and not own.is_meta:
            made = _resized(module, names[0], tensors[given[0]], own)
        if made is not None:
            report.resized[names[0]] = f"{list(value.shape)} to {list(own.shape)}"
            value = made
        problem = _misfit(value, own)
        if problem:
            report.mismatched[names[0]] = problem
            continue
        if value.dtype != own.dtype:
            report.converted[names[0]] = f"{_kind(value)} to {_kind(own)}"
        report.matched.append(names[0])
        chosen.append((own, given[0] if made is None else made))
    report.unexpected = sorted(set(tensors).difference(*(names for _, names in named)))
    return chosen


def _misfit(value: Tensor, own: Tensor) -> str | None:
    if own.is_meta:
        raise ValueError("the model is on the meta device: give it memory before loading into it")
    if value.shape != own.shape:
        return f"{list(value.shape)} in the file, {list(own.shape)} in the model"
    if value.is_floating_point() != own.is_floating_point():
        return f"{_kind(value)} in the file, {_kind(own)} in the model"
    return None


def _check_equal(given: list[str], tensors: Mapping[str, Tensor]) -> None:
    for name in given[1:]:
        if not torch.equal(tensors[given[0]], tensors[name]):
            raise CheckpointError(
                f"`{given[0]}` and `{name}` are tied in the model, but differ in the file; "
                "untie them in the config (`model.ties`)"
            )


def _check_some(report: LoadReport, named: Named, tensors: Iterable[str]) -> None:
    """Whatever is allowed, a file of which nothing is used is the wrong one."""
    if not report.matched and (report.missing or report.mismatched):
        wanted = listed(names[0] for _, names in named[:3])
        found = listed(sorted(tensors)[:3]) or "none"
        differ = [f"`{name}` is {how}" for name, how in list(report.mismatched.items())[:3]]
        raise CheckpointError(
            f"0 of {len(named)} tensors match: is this the right model? "
            + ("; ".join(differ) or f"It has {wanted}, the file has {found}")
        )


def _check_allowed(
    report: LoadReport, allowed: Mapping[str, Sequence[str]], aliases: Mapping[str, list[str]]
) -> None:
    problems: list[str] = []
    for kind, patterns in allowed.items():
        refused = [
            name + (f" ({report.mismatched[name]})" if kind == "mismatched" else "")
            for name in getattr(report, kind)
            if not any(
                fnmatchcase(alias, p) for alias in aliases.get(name, [name]) for p in patterns
            )
        ]
        if refused:
            problems.append(
                f"{len(refused)} {kind}: {listed(refused)}; allow them by name "
                f"with `allow_{kind}`, such as [{_pattern(refused[0])}]"
            )
    if problems:
        total = len(report.matched) + len(report.missing) + len(report.mismatched)
        raise CheckpointError(
            f"only {len(report.matched)} of {total} tensors fit the model\n" + "\n".join(problems)
        )


def _pattern(name: str) -> str:
    name = name.split(" ")[0]
    return f"{name.split('.')[0]}.*" if "." in name else name


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
