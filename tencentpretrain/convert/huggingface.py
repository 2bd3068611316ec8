"""Models of `transformers` become ours; its library is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tencentpretrain.config import decode
from tencentpretrain.convert.family import Family, Head, Plain
from tencentpretrain.convert.incoming import Incoming, receive, respell
from tencentpretrain.convert.keys import Settings, fill_model
from tencentpretrain.convert.preparation import prepared
from tencentpretrain.convert.report import Report
from tencentpretrain.model import ModelConfig
from tencentpretrain.train.source import merge
from tencentpretrain.train.tensor_file import LazyTensors

TIED: Final = ("mlm", "lm")
"""Targets whose output layer may be the word table."""
LABELLED: Final = ("classify", "tag")
"""Targets that say what they mean by `id2label`."""
OBJECTIVES: Final = {"mlm nsp": "bert", "mlm sop": "albert", "mlm": "mlm", "lm": "lm"}
"""Objectives of pre-training that supervise these targets."""
LENGTH: Final = 512
"""Greatest length of the rows of such an objective, in tokens."""


def import_model(
    family: Family,
    config: Mapping[str, Any],
    tensors: LazyTensors,
    tokenizer_size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_unexpected: Sequence[str] = (),
    preparation: Mapping[str, Any] | None = None,
) -> Incoming:
    """Our model for one of a family.

    Args:
        family: What `config` and `tensors` are of.
        config: Content of config.json.
        tensors: Weights, under their names.
        tokenizer_size: Entries of its tokenizer; None where it comes without one.
        overrides: Plain data of the model that differs from what `config` says.
        allow_unexpected: Patterns of their names that have no place here and may be left.
        preparation: What is kept beside the model about preparing inputs, if it is.

    Raises:
        CheckpointError: if a part is unknown here, or a tensor is missing or left over.
        ConfigError: if `overrides` do not fit.
    """
    settings, report = family.settings(config), Report()
    settings.expect(family.expected)
    theirs = respell(family.table, tensors, report)
    data, empty = model_data(family, settings, theirs)
    report.empty = list(empty)
    rows = vocabulary_rows(family, settings)
    data["vocabulary"] = None if rows in (None, tokenizer_size) else rows
    report.unread = settings.unread()
    if preparation is not None and family.preparation is not None:
        data["objective"] = prepared(family.preparation, preparation, data["objective"], report)
    model = decode(ModelConfig, merge(data, overrides or {}), "model")
    return receive(
        family.rules(model.target),
        family.aside,
        theirs.without(empty),
        model,
        tokenizer_size or rows or 1,
        numbers_of(family, settings, model),
        allow_unexpected,
        report,
    )


def vocabulary_rows(family: Family, settings: Settings) -> int | None:
    """Rows of the table of words; None where there is none."""
    return None if family.words is None else settings.number("vocab_size")


def model_data(
    family: Family, settings: Settings, theirs: LazyTensors
) -> tuple[Plain, tuple[str, ...]]:
    """Plain data of the model config that `settings` and the names of `theirs` mean.

    Returns:
        It, and the names of tensors that are zero and have no place in such a model.

    Raises:
        CheckpointError: if `settings` lack a key, or it has a value that means nothing here.
    """
    targets = _targets(family, settings, theirs)
    data: Plain = _fresh({"init": {}, **family.base, "target": targets})
    fill_model(data, family.keys, settings)
    empty = family.to_model(data, settings, theirs)
    if family.is_tied(settings, theirs):
        ties = {f"target.{name}.output.weight": family.words for name in TIED if name in targets}
        data["ties"] = data.get("ties", {}) | ties
    data["objective"] = _objective(family, targets, data, settings)
    return data, empty


def _fresh(value: Any) -> Any:
    """A copy of plain data in which no two places are one object."""
    return {k: _fresh(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _targets(family: Family, settings: Settings, theirs: LazyTensors) -> dict[str, Any]:
    """Plain data of the targets whose tensors are there."""
    named = settings.values.get("architectures") or []
    known = {name: targets.split() for targets, name in family.architectures.items()}
    said = {target for name in named for target in known.get(name, ())}
    is_labelled = not named or any(name in known for name in named)
    if settings.values.get("problem_type") not in (None, "single_label_classification"):
        is_labelled = False
    claimed: set[str] = set()
    found: dict[str, Any] = {}
    for head in family.heads:
        if head.marks:
            is_there = all(mark in theirs.described for mark in head.marks)
        else:
            names = {name for rule in head.rules for name in rule.theirs}
            is_there = not named or head.target in said or not names.isdisjoint(theirs)
        if head.target in LABELLED and not is_labelled:
            is_there = False
        if is_there and claimed.isdisjoint(head.marks):
            claimed.update(head.marks)
            found[head.target] = {**head.config, **_classes(head, theirs)}
    return found


def _classes(head: Head, theirs: LazyTensors) -> dict[str, int]:
    """Number of labels: config.json leaves out the usual one, the tensors never do."""
    if head.target not in LABELLED:
        return {}
    return {"classes": theirs.described[head.marks[-1]].shape[0]}


def _objective(
    family: Family, targets: Mapping[str, Any], data: Plain, settings: Settings
) -> Plain | None:
    """What supervises `targets`, in rows that no table of positions is too short for."""
    own = family.objectives.get(" ".join(sorted(targets)))
    keys = family.objective_keys(settings)
    if family.objectives:
        return None if own is None or keys is None else {"name": own, **keys}
    name = OBJECTIVES.get(" ".join(sorted(targets)))
    length = min(data["embedding"]["parts"].get("position", {}).get("length", LENGTH), LENGTH)
    if name is None or "decoder" not in data:
        return None if name is None else {"name": name, "length": length}
    usual = {"length": length, "target_length": length}
    return {"name": family.objective, **usual, **(keys or {})}


def numbers_of(family: Family, settings: Settings, model: ModelConfig) -> dict[str, int]:
    """Sizes that transforms ask for."""
    encoder = model.encoder
    heads: int = getattr(encoder, "heads", 1)
    layout = getattr(getattr(encoder, "rotary", None), "layout", "halves")
    return {
        "is_gated": int(getattr(encoder, "gated", False)),
        "heads": heads,
        "kv_heads": getattr(encoder, "kv_heads", None) or heads,
        "is_interleaved": int(layout == "interleaved"),
        **family.numbers(settings),
    }
