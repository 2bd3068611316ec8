"""Models of TencentPretrain with two towers: CLIP, SBERT and siamese ones, their names and configs.

Each tower has an embedding and an encoder; after its own norm an embedding goes through another one
that the pair of towers holds (D23).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from tencentpretrain.convert.family import Plain
from tencentpretrain.convert.incoming import check_equal
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.original_images import reads_images
from tencentpretrain.convert.report import Report
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import TRANSPOSED
from tencentpretrain.errors import CheckpointError
from tencentpretrain.targets.contrast import MAX_SCALE
from tencentpretrain.train.tensor_file import LazyTensors

DUAL: Final = "dual"
SECOND: Final = re.compile(r"^(embedding|encoder)\.\1_1\.")
NORMS: Final = ("embedding.stream_0_layer_norm", "embedding.stream_1_layer_norm")
SCALE: Final = "target.clr.logit_scale"
PROJECTIONS: Final = ("target.clr.encoder_0_projection", "target.clr.encoder_1_projection")
NORM_RULES: Final = modules({"embedding.second_norm": NORMS[0]}, only=("has_second_norm", 1))
CONTRAST_RULES: Final = (
    *(
        Rule((f"target.contrast.projections.{number}.weight",), (name,), TRANSPOSED)
        for number, name in enumerate(PROJECTIONS)
    ),
    Rule(("target.contrast.log_scale",), (SCALE,)),
)


@dataclass(frozen=True)
class Pair:
    """Two towers of a file.

    Args:
        first: Config of the one that is the model's own here.
        second: Config of the other one.
        streams: What they read.
    """

    first: Settings
    second: Settings
    streams: tuple[str, str]


def find_pair(settings: Settings) -> Pair | None:
    """The two towers that a config names; None where it has one.

    Raises:
        CheckpointError: if it lacks one of them.
    """
    if DUAL not in settings.listed("embedding", []):
        return None
    first, second = (settings.section(f"stream_{number}") for number in (0, 1))
    one, other = (_kind(tower) for tower in (first, second))
    return Pair(first, second, (one, other) if one != other else ("src", "pair"))


def _kind(tower: Settings) -> str:
    names = tower.listed("embedding", ["word", "pos", "seg"])
    return "image" if reads_images(names) else "text"


def respell_second(tensors: LazyTensors, table: Table) -> LazyTensors:
    """Names of the second tower as those of the first, but for its number."""
    names = {
        _numbered(table.spelled(SECOND.sub(r"\1.", name))) if SECOND.match(name) else name: name
        for name in tensors
    }
    described = {new: tensors.described[name] for new, name in names.items()}
    return LazyTensors(described, lambda name: tensors[names[name]])


def join_equal(tensors: LazyTensors, is_tied: bool, report: Report) -> LazyTensors:
    """Without the second of two equal towers.

    Raises:
        CheckpointError: if they differ, but the config says that they are tied.
    """
    second = {name: SECOND.sub(r"\1.", name) for name in tensors if SECOND.match(name)}
    for name, first in second.items():
        if first not in tensors.described:
            raise CheckpointError(f"`{name}` has no counterpart `{first}` in the other tower")
        if is_tied:
            check_equal(tensors, first, name, "the config says that both towers are one")
    norms = [name for name in tensors if name.startswith(f"{NORMS[1]}.")]
    firsts = {name: name.replace(NORMS[1], NORMS[0]) for name in norms}
    if firsts and all(_is_equal(tensors, *pair) for pair in firsts.items()):
        second |= firsts
    report.tied += second
    return tensors.without(list(second))


def are_equal(tensors: LazyTensors) -> bool:
    """Whether both towers have the same tensors, but for the norm that follows their embedding."""
    first = {name for name in tensors if re.match(r"(embedding|encoder)\.", name)}
    first = {name for name in first if not SECOND.match(name) and not name.startswith(NORMS)}
    second = {SECOND.sub(r"\1.", name): name for name in tensors if SECOND.match(name)}
    return first == second.keys() and all(_is_equal(tensors, *pair) for pair in second.items())


def _is_equal(tensors: LazyTensors, one: str, other: str) -> bool:
    if one not in tensors.described or other not in tensors.described:
        return False
    has_shape = tensors.described[one].shape == tensors.described[other].shape
    return has_shape and torch.equal(tensors[one], tensors[other])


def tower_rules(rules: Sequence[Rule], tower: str) -> tuple[Rule, ...]:
    """`rules` of a model as those of its second tower, which is called `tower` here."""
    return tuple(
        Rule(
            tuple(f"towers.{tower}.{name}" for name in rule.ours),
            tuple(map(_numbered, rule.theirs)),
            rule.transform,
            None if rule.only is None else (f"{rule.only[0]}_1", rule.only[1]),
        )
        for rule in rules
    )


def _numbered(name: str) -> str:
    if name.startswith(NORMS[0]):
        return name.replace(NORMS[0], NORMS[1])
    return re.sub(r"^(embedding|encoder)\.", r"\1.\1_1.", name)


def contrast_target(pair: Pair, tensors: LazyTensors, report: Report) -> Plain:
    """The target of a pair; what was learned of it is in the file."""
    projections = [name for name in PROJECTIONS if name in tensors.described]
    size = tensors.described[projections[0]].shape[1] if projections else None
    for key in ("projection", "feature_size"):
        pair.first.get(key, None)
    if SCALE in tensors.described and float(tensors[SCALE]) > math.log(MAX_SCALE):
        report.remarks.append(
            f"warning: the file multiplies cosines by {float(tensors[SCALE].exp()):.1f}; here it "
            f"is {MAX_SCALE:g} at most (D47), so that scores are smaller, in the same order"
        )
    return {
        "streams": list(pair.streams),
        "pooling": pair.first.get("pooling", "first"),
        "other_pooling": pair.second.get("pooling", "first"),
        "size": size,
    }
