"""Adapters of the `peft` library as runs of ours: an adapter and a reference to its base."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from tencentpretrain.config import decode
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.family import Family, Head
from tencentpretrain.convert.huggingface import LABELLED
from tencentpretrain.convert.outgoing import Outgoing
from tencentpretrain.convert.peft_out import PREFIX, TASK_TYPES
from tencentpretrain.convert.peft_places import Places
from tencentpretrain.convert.table import convert
from tencentpretrain.convert.weights import open_file, read_json
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import ModelConfig
from tencentpretrain.train.base import plain_tensors
from tencentpretrain.train.load import listed
from tencentpretrain.train.saved_checkpoint import Checkpoint
from tencentpretrain.train.source import saved_config
from tencentpretrain.train.tensor_file import LazyTensors
from tencentpretrain.wrappers.factors import DOWN, MAGNITUDE, MIXER, UP
from tencentpretrain.wrappers.lora import HEADS, generic_name

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
SUFFIXES: Final = {
    "lora_A.weight": DOWN,
    "lora_B.weight": UP,
    "lora_AB.weight": MIXER,
    "lora_magnitude_vector": MAGNITUDE,
    "lora_magnitude_vector.weight": MAGNITUDE,
    "lora_embedding_A": UP,
    "lora_embedding_B": DOWN,
}
"""Ends of names of factors and our names of them; `lora_AB` is the mixer of MoSLoRA's own fork.
Factors of tables are stored turned and play each other's part."""
UNKNOWN: Final = (
    *("layer_replication", "trainable_token_indices", "target_parameters", "lora_bias"),
    *("alora_invocation_tokens", "use_qalora", "arrow_config", "megatron_config"),
)
"""Keys that must not be set: what they do is not done here."""


@dataclass(frozen=True)
class Imported:
    """An adapter of `peft` as one of ours.

    Args:
        model: Config of the model that it makes of its base.
        wrappers: Plain data of the wrappers.
        tensors: What the base does not have.
    """

    model: ModelConfig
    wrappers: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class _Kind:
    """What the updates of one wrapper have in common."""

    name: str
    rank: int
    alpha: float


def import_adapter(folder: Path, base: Checkpoint, family: str = "auto") -> Imported:
    """The adapter in `folder` for the model in `base`.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors.
        base: The model that it was trained on, as it was converted.
        family: Of the base, where its files do not tell it.

    Raises:
        CheckpointError: if it is of another kind, or does not fit the base.
    """
    config = read_json(folder / CONFIG)
    check_config(config)
    tensors = open_file(folder / WEIGHTS)
    factors, whole = split_tensors(tensors)
    outgoing = depart(base.path, family).outgoing
    model = decode(ModelConfig, saved_config(base)["model"], "model")
    places = Places(outgoing, model, LazyTensors.of(plain_tensors(base)))
    wrong = _misfit(factors, places)
    if wrong:
        named = config.get("base_model_name_or_path")
        raise CheckpointError(
            f"`{base.path}`, as {outgoing.config['architectures'][0]}, is not the base of the "
            f"adapter, which was trained on {named or 'a model that it does not name'}: {wrong}; "
            "convert that model by scripts/convert.py, and give it as base"
        )
    wanted = next((t for t, name in TASK_TYPES.items() if name == config.get("task_type")), None)
    model, given = _whole(model, outgoing, places, whole, wanted)
    own: dict[str, Tensor] = dict(given)
    kinds: dict[_Kind, list[str]] = {}
    for path, parts in factors.items():
        for module, named in _ours(places, path, parts).items():
            rank = named[DOWN].shape[0]
            kinds.setdefault(_kind(config, path, parts, rank), []).append(module)
            own |= {f"{module}.{name}": tensor for name, tensor in named.items()}
    heads = [name for name in given if not fnmatchcase(name, HEADS)]
    wrappers = _wrappers(config, kinds, set(places.by_ours), [HEADS, *heads])
    return Imported(model, wrappers, own)


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse adapters of which only a part would be understood.

    Raises:
        CheckpointError: naming the key.
    """
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{CONFIG}: peft_type must be LORA, but is {config.get('peft_type')}")
    wrong = [key for key in UNKNOWN if config.get(key)]
    if config.get("bias", "none") != "none":
        wrong.append("bias")
    if wrong:
        raise CheckpointError(f"{CONFIG}: {listed(wrong)} must not be set: there is no such part")


def split_tensors(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Factors by the module that they are of, and whole tensors by name, both without prefix."""
    factors: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for full in tensors:
        name = full.removeprefix(PREFIX)
        end = next((end for end in SUFFIXES if name.endswith(f".{end}")), None)
        if end is None:
            whole[name] = tensors[full]
            continue
        tensor = tensors[full].t() if "embedding" in end else tensors[full]
        factors.setdefault(name.removesuffix(f".{end}"), {})[SUFFIXES[end]] = tensor
    return factors, whole


def _misfit(factors: Mapping[str, Mapping[str, Tensor]], places: Places) -> str | None:
    """Which layer the adapter wants and the base has otherwise; None if all fit.

    Raises:
        CheckpointError: if the adapter itself is incomplete.
    """
    for path, parts in factors.items():
        if not {DOWN, UP} <= parts.keys():
            raise CheckpointError(f"{WEIGHTS} holds only a part of the update of `{path}`")
        wanted = parts[UP].shape[0], parts[DOWN].shape[1]
        place = places.by_theirs.get(places.path(path))
        if place is None:
            return f"that has a layer `{path}` {list(wanted)}, and this one has none"
        if place.shape != wanted:
            return f"`{path}` is {list(wanted)} there, but {list(place.shape)} here"
    return None


def _ours(places: Places, path: str, parts: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Factors by our modules; those in one of theirs share A."""
    place = places.by_theirs[places.path(path)]
    heads = [module for module in place.ours if fnmatchcase(module, HEADS)]
    if heads:
        raise CheckpointError(f"the adapter is of `{path}`, a head, which trains in full here")
    ups = places.to_ours(place, parts[UP])
    found = {n: {**parts, UP: up} for n, up in zip(place.ours, ups, strict=True)}
    if MAGNITUDE in parts:
        columns = places.to_ours(place, parts[MAGNITUDE].reshape(-1, 1))
        for module, column in zip(place.ours, columns, strict=True):
            found[module][MAGNITUDE] = column[:, 0]
    return {
        module: {name: tensor.contiguous() for name, tensor in named.items()}
        for module, named in found.items()
    }


def _kind(config: Mapping[str, Any], path: str, parts: Mapping[str, Tensor], rank: int) -> _Kind:
    name = "moslora" if MIXER in parts else "dora" if MAGNITUDE in parts else "lora"
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    own = (a for pattern, a in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", path))
    alpha: float = next(own, config.get("lora_alpha", 8))
    return _Kind(name, rank, alpha)


def _wrappers(
    config: Mapping[str, Any],
    kinds: Mapping[_Kind, list[str]],
    known: set[str],
    trained: list[str],
) -> dict[str, Any]:
    """Plain data of a wrapper for each kind of update."""
    if not kinds:
        raise CheckpointError(f"{WEIGHTS} holds no update of any layer")
    found: dict[str, Any] = {}
    for number, (kind, modules) in enumerate(kinds.items()):
        found[kind.name if not number else f"{kind.name}_{number + 1}"] = {
            "name": kind.name,
            "rank": kind.rank,
            "alpha": kind.alpha,
            "rank_stabilised": bool(config.get("use_rslora")),
            "dropout": config.get("lora_dropout", 0.0),
            "modules": _patterns(modules, known),
            "trained": trained,
        }
    return found


def _patterns(modules: Iterable[str], known: Iterable[str]) -> list[str]:
    """Patterns that match `modules` and no other of the `known` ones."""
    chosen, found = set(modules), set()
    for module in chosen:
        pattern = generic_name(module)
        fits = all(name in chosen for name in known if fnmatchcase(name, pattern))
        found.add(pattern if fits else module)
    return sorted(found)


def _whole(
    model: ModelConfig,
    outgoing: Outgoing,
    places: Places,
    whole: Mapping[str, Tensor],
    wanted: str | None,
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """What trained in full under our names, and the model with the head that it may bring.

    Args:
        model: The base.
        outgoing: The base as one of theirs.
        places: Its modules.
        whole: Their tensors.
        wanted: Target that the task of the adapter calls for, if it says.
    """
    table = outgoing.family.table
    spelled = {table.spelled(name): tensor for name, tensor in whole.items()}
    spelled = {n: t for n, t in spelled.items() if table.copies.get(n) not in spelled}
    theirs = dict.fromkeys(outgoing.tensors, outgoing.tensors) | dict.fromkeys(spelled, spelled)
    head = _head(outgoing.family, theirs.keys(), spelled, wanted)
    is_new = head is not None and head.target not in model.target
    if head is not None and is_new:
        model = _with_head(model, head, spelled)
    described = {**outgoing.tensors.described, **LazyTensors.of(spelled).described}
    there = LazyTensors(described, lambda name: theirs[name][name])
    made = convert(outgoing.family.rules(model.target), "ours", there, places.numbers)
    given = {
        name: made.tensors[name]
        for name, sources in made.sources.items()
        if not spelled.keys().isdisjoint(sources) or (is_new and fnmatchcase(name, HEADS))
    }
    used = {source for name in given for source in made.sources[name]}
    lost = sorted(spelled.keys() - used)
    if lost:
        raise CheckpointError(f"{listed(lost)} of the adapter have no place in the base")
    return model, given


def _head(
    family: Family, theirs: Collection[str], spelled: Collection[str], wanted: str | None
) -> Head | None:
    """The head that the adapter brings, alone or with what is in the base."""
    for head in family.heads:
        brings = any(mark in spelled for mark in head.marks)
        if brings and set(head.marks).issubset(theirs) and wanted in (None, head.target):
            return head
    return None


def _with_head(model: ModelConfig, head: Head, spelled: Mapping[str, Tensor]) -> ModelConfig:
    """The model with this head in the place of its own ones."""
    classes = {"classes": len(spelled[head.marks[-1]])} if head.target in LABELLED else {}
    data = model.to_dict() | {"target": {head.target: {**head.config, **classes}}}
    data["ties"] = {a: b for a, b in model.ties.items() if "target." not in f"{a} {b}"}
    return decode(ModelConfig, data | {"objective": None}, "model")
