"""Our models become those of `transformers`, where one of its classes computes the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import torch
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.convert.departing import Departing
from tencentpretrain.convert.families import FAMILIES
from tencentpretrain.convert.family import Family, Plain
from tencentpretrain.convert.huggingface import (
    LABELLED,
    TIED,
    model_data,
    numbers_of,
    vocabulary_rows,
)
from tencentpretrain.convert.incoming import receive, respell
from tencentpretrain.convert.keys import Settings, fill_config
from tencentpretrain.convert.leaving import distance, leave_out
from tencentpretrain.convert.report import Report
from tencentpretrain.convert.table import convert
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import ModelConfig
from tencentpretrain.tokenizers.base import Role
from tencentpretrain.train.load import listed
from tencentpretrain.train.same_run import flatten
from tencentpretrain.train.tensor_file import LazyTensors

FREE: Final = re.compile(
    r"objective(\..*)?|init\..*|(target_)?vocabulary|.*dropout|.*\.interpolate|"
    r"target\.\w+\.(weight|label_smoothing)|target\.contrast\.(temperature|chunk)"
)
"""Keys that do not change what a trained model computes."""
MANY: Final = 1000
"""Differences of a model that has no counterpart at all."""
SHOWN: Final = 5


class MisfitError(CheckpointError):
    """A model has keys that models of a family cannot have.

    Args:
        differences: A sentence about each.
    """

    def __init__(self, differences: Sequence[str]) -> None:
        self.count = len(differences)
        more = f"; and {self.count - SHOWN} more" if self.count > SHOWN else ""
        super().__init__("; ".join(differences[:SHOWN]) + more)


@dataclass(frozen=True)
class Outgoing:
    """A model of a family that was ours.

    Args:
        family: The family.
        config: Content of config.json.
        tensors: Weights, under their names.
        report: What became of everything.
    """

    family: Family
    config: Plain
    tensors: LazyTensors
    report: Report


def choose_family(
    departing: Departing,
    candidates: Sequence[str] = tuple(FAMILIES),
    allow_unexpected: Sequence[str] = (),
) -> Outgoing:
    """The model as one of the first family that it fits.

    Raises:
        CheckpointError: with what is in the way of the family that it nearly fits, if it fits none.
    """
    misfits: dict[str, CheckpointError] = {}
    for name in candidates:
        try:
            return export_model(FAMILIES[name], departing, allow_unexpected)
        except CheckpointError as error:
            misfits[name] = error
    data = departing.model.to_dict()

    def differs(name: str) -> tuple[int, int, int]:
        # Whoever exports a model of images asks for no reason why it is none of texts.
        inputs, parts = distance(FAMILIES[name], data)
        error = misfits[name]
        return inputs, error.count if isinstance(error, MisfitError) else MANY, parts

    nearest = min(misfits, key=differs)
    others = ", ".join(name for name in candidates if name != nearest) or "others"
    raise CheckpointError(
        f"the model cannot be one of the family {nearest}: {misfits[nearest]}; nor of {others}"
    )


def export_model(
    family: Family,
    departing: Departing,
    allow_unexpected: Sequence[str] = (),
    *,
    is_whole: bool = False,
) -> Outgoing:
    """A model of `family` for ours; what is made is read again, so that nothing is lost.

    Args:
        family: What it is to become.
        departing: What it is.
        allow_unexpected: Patterns of our names that have no place there and may be left out.
        is_whole: Whether no target may be left out, either.

    Raises:
        CheckpointError: if such a model is none of the family, saying why.
    """
    report = Report()
    if not is_whole:
        departing = leave_out(family, departing, report)
    model = departing.model
    data = explicit(model)
    config = _config(family, departing, data)
    settings = family.settings(config)
    numbers = numbers_of(family, settings, model)
    conversion = convert(family.rules(model.target), "theirs", departing.tensors, numbers)
    strange = [
        name
        for name in conversion.unexpected
        if not any(fnmatchcase(name, pattern) for pattern in allow_unexpected)
    ]
    made = _complete(family, config, conversion.tensors, departing, report)
    theirs = respell(family.table, made, Report())
    back, empty = _read_back(family, settings, theirs)
    differences = _differences(data, explicit(back))
    if differences:
        raise MisfitError(differences)
    if strange or conversion.incomplete:
        names = listed([*strange, *conversion.incomplete])
        raise CheckpointError(f"{names} have no place there; allow with allow_unexpected")
    received = receive(
        family.rules(model.target),
        family.aside,
        theirs.without(empty),
        back,
        config.get("vocab_size", 1),
        numbers,
        [*departing.aside],
        Report(),
    )
    report.aside = {name: "no place there" for name in conversion.unexpected}
    report.converted = received.report.converted
    if config.get("is_encoder_decoder") and config.get("decoder_start_token_id") is None:
        report.remarks.append(
            "nothing tells which token the decoder starts from; give `decoder_start_token_id` to "
            "generate()"
        )
    if config["architectures"] == [family.architectures.get("")]:
        made = _without_prefix(made, family.prefix)
    return Outgoing(family, family.nested(config), made, report)


def _config(family: Family, departing: Departing, data: Plain) -> Plain:
    """Content of config.json."""
    model, specials = departing.model, departing.specials
    # What was kept aside makes it again what it was.
    was = departing.origin.get("architectures") if len(departing.aside) else None
    architecture = next(iter(was or []), None) or family.architecture(model.target)
    if architecture is None:
        known = ", ".join(f"`{targets}`" for targets in family.architectures if targets)
        raise CheckpointError(
            f"it has the targets `{' '.join(sorted(model.target))}`, and a class exists for {known}"
        )
    if data["encoder"]["name"] != family.base["encoder"]["name"]:
        raise CheckpointError(f"it has an encoder `{data['encoder']['name']}`")
    # What models that generate begin and end with.
    roles: tuple[Role, ...] = ("pad", "bos", "eos") if "lm" in model.target else ("pad",)
    config: Plain = {
        **{f"{role}_token_id": specials.get(role) for role in roles},
        **{k: v for k, v in family.flat(departing.origin).items() if k not in family.aliases},
        **({} if departing.start is None else {"decoder_start_token_id": departing.start}),
        "architectures": [architecture],
        "model_type": family.model_type,
        **_vocabulary(family, departing),
        "tie_word_embeddings": _is_tied(model),
        **_labels(model, departing.labels),
    }
    fill_config(config, family.keys, data)
    family.to_config(config, data, specials)
    return config


def _vocabulary(family: Family, departing: Departing) -> Plain:
    """Number of words, in families that have any."""
    if family.words is None:
        return {}
    words = departing.tensors.described.get(family.words)
    rows = departing.model.vocabulary if words is None else len(words)
    return {} if rows is None else {"vocab_size": rows}


def _is_tied(model: ModelConfig) -> bool:
    outputs = [f"target.{name}.output.weight" for name in TIED if name in model.target]
    return any(name in model.ties for name in outputs) or not outputs


def _labels(model: ModelConfig, labels: Sequence[str] | None) -> Plain:
    """Names of the classes; numbers, as `transformers` gives them, where they have none."""
    head = next((model.target[name] for name in LABELLED if name in model.target), None)
    if head is None:
        return {}
    names = labels or [f"LABEL_{number}" for number in range(getattr(head, "classes", 0))]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _complete(
    family: Family, config: Plain, made: LazyTensors, departing: Departing, report: Report
) -> LazyTensors:
    """What was made, what was kept aside, and what our model has not."""
    fills: dict[str, Callable[[Tensor], Tensor]] = {}
    parts: dict[str, LazyTensors] = dict.fromkeys(made, made)
    parts |= dict.fromkeys(departing.aside, departing.aside)
    described = {name: part.described[name] for name, part in parts.items()}
    read_as, stored = family.table.output_bias or ("", "")
    if stored in made and not config["tie_word_embeddings"]:
        # Two tensors in such a model, of which it reads the second.
        described[read_as] = described[stored]
        parts[read_as] = LazyTensors({read_as: described[stored]}, lambda _: made[stored])
    dtype = next(iter(made.described.values())).dtype if made.described else torch.float32
    for filled in family.filled:
        if filled.name in parts:
            continue
        if filled.target == "" and config["architectures"] != [family.architectures.get("")]:
            continue
        if filled.target and filled.target not in departing.model.target:
            continue
        sizes = filled.shape(config) if callable(filled.shape) else filled.shape
        absent = [size for size in sizes if isinstance(size, str) and size not in config]
        if absent:
            raise CheckpointError(f"`{filled.name}` there needs `{absent[0]}`, which it has not")
        shape = [config[size] if isinstance(size, str) else size for size in sizes]
        described[filled.name] = torch.empty(shape, dtype=dtype, device="meta")
        fills[filled.name] = filled.fill
        report.filled.append(filled.name)

    def read(name: str) -> Tensor:
        if name in parts:
            return parts[name][name]
        return fills[name](torch.zeros_like(described[name], device="cpu"))

    return LazyTensors(described, read)


def _read_back(
    family: Family, settings: Settings, theirs: LazyTensors
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Our config for what was made, and what of it is zero and has no place."""
    try:
        data, empty = model_data(family, settings, theirs)
        data["vocabulary"] = vocabulary_rows(family, settings)
        return decode(ModelConfig, data, "model"), empty
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def explicit(model: ModelConfig) -> Plain:
    """Plain data of `model` with what it leaves to be derived."""
    data = model.to_dict()
    data["ties"] = {name: _kept(name, model.ties) for name in model.ties}
    target_width = model.target_hidden or model.hidden
    sides = [(data["embedding"], data["encoder"], model.hidden)]
    sides += [(data["target_embedding"], data["decoder"], target_width)]
    for tower in data["towers"].values():
        tower["hidden"] = tower["hidden"] or model.hidden
        sides.append((tower["embedding"], tower["encoder"], tower["hidden"]))
    for embedding, stack, width in sides:
        if embedding:
            _make_explicit(embedding, width)
        if stack and "heads" in stack:
            stack["ffn"] = stack["ffn"] or 4 * width
            stack["kv_heads"] = stack["kv_heads"] or stack["heads"]
            stack["head_size"] = stack["head_size"] or width // stack["heads"]
            if stack["qkv_bias"] is None:
                stack["qkv_bias"] = stack["bias"]
            if stack["key_bias"] is None:
                stack["key_bias"] = stack["qkv_bias"]
            if stack["attention_dropout"] is None:
                stack["attention_dropout"] = stack["dropout"]
    return data


def _make_explicit(embedding: Plain, width: int) -> None:
    """The same for an embedding and those that it nests."""
    embedding["size"] = embedding["size"] or width
    if embedding["norm"] == "none":
        embedding["norm_eps"] = None
    for part in embedding["parts"].values():
        for inner in part.get("embeddings", {}).values():
            _make_explicit(inner, embedding["size"])


def _kept(name: str, ties: Mapping[str, str]) -> str:
    """The parameter that `name` is in the end."""
    for _ in ties:
        name = ties.get(name, name)
    return name


def _differences(data: Plain, back: Plain) -> list[str]:
    """Keys whose values such models cannot have."""
    ours, theirs = flatten(data), flatten(back)
    return [
        f"{key} is {_said(ours, key)}, but there it would be {_said(theirs, key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and not FREE.fullmatch(key)
    ]


def _said(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "absent"


def _without_prefix(tensors: LazyTensors, prefix: str) -> LazyTensors:
    """As files of a bare model name the tensors of its body."""
    names = {name.removeprefix(prefix): name for name in tensors}
    described = {short: tensors.described[name] for short, name in names.items()}
    return LazyTensors(described, lambda short: tensors[names[short]])
