"""Targets of ours that no class of a family has, and how near families are to a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tencentpretrain.convert.departing import Departing
from tencentpretrain.convert.family import Family, LeftOut
from tencentpretrain.convert.report import Report
from tencentpretrain.embeddings.base import PARTS
from tencentpretrain.train.load import listed
from tencentpretrain.train.tensor_file import LazyTensors


def leave_out(family: Family, departing: Departing, report: Report) -> Departing:
    """The model without the targets that `family` has no place for; each is a remark."""
    for left in family.left_out:
        targets = departing.model.target
        if left.target in targets and left.applies(targets):
            departing = _without(left, departing, report)
    return departing


def _without(left: LeftOut, departing: Departing, report: Report) -> Departing:
    model, tensors, prefix = departing.model, departing.tensors, f"target.{left.target}."
    head = model.target[left.target]
    reads_first = getattr(head, "pooling", "") == "first" and getattr(head, "norm", "") == "none"
    kept = {
        f"{left.pooler}.{kind}": f"{prefix}dense.{kind}"
        for kind in ("weight", "bias")
        if reads_first and f"{prefix}dense.{kind}" in tensors
    }
    names = [name for name in tensors if name.startswith(prefix) and name not in kept.values()]
    becomes = f"; its hidden layer becomes `{left.pooler}`" if kept else ""
    report.remarks.append(
        f"the target `{left.target}` is left out, as no class there computes it: "
        f"{listed(names)}{becomes}"
    )
    pooler = LazyTensors(
        {theirs: tensors.described[ours] for theirs, ours in kept.items()},
        lambda theirs: tensors[kept[theirs]],
    )
    return replace(
        departing,
        model=model.model_copy(
            update={
                "target": {n: t for n, t in model.target.items() if n != left.target},
                "ties": {n: k for n, k in model.ties.items() if not n.startswith(prefix)},
            }
        ),
        tensors=tensors.without([name for name in tensors if name.startswith(prefix)]),
        aside=_joined(departing.aside, pooler),
    )


def _joined(first: LazyTensors, second: LazyTensors) -> LazyTensors:
    described = {**first.described, **second.described}
    return LazyTensors(described, lambda name: (second if name in second else first)[name])


def distance(family: Family, data: Mapping[str, Any]) -> tuple[int, int]:
    """How much the inputs of a model differ from what `family` reads, and then its parts."""
    ours, theirs = dict(_parts(data)), dict(_parts(family.base))
    read = [{place for place, is_read in parts.items() if is_read} for parts in (ours, theirs)]
    return len(read[0] ^ read[1]), len(ours.keys() ^ theirs.keys())


def _parts(data: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Places of the parts of embeddings, and whether these read an input."""
    sides = {"": data["embedding"], "target.": data.get("target_embedding")}
    towers = (data.get("towers") or {}).items()
    sides |= {f"{name}.": tower["embedding"] for name, tower in towers}
    for side, embedding in sides.items():
        for key, part in (embedding or {"parts": {}})["parts"].items():
            name = part.get("name", key)
            yield f"{side}{name}", PARTS.get(name).has_content
