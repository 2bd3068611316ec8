"""What the engine knows of a family of models in `transformers`: data and very few functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tencentpretrain.convert.keys import Key, Settings
from tencentpretrain.convert.preparation import Preparation
from tencentpretrain.convert.table import Rule, Table
from tencentpretrain.tokenizers.base import Role
from tencentpretrain.train.tensor_file import LazyTensors

Specials = Mapping[Role, int | None]
Plain = dict[str, Any]
"""Plain data of a model config, or the content of a config.json."""


@dataclass(frozen=True)
class Head:
    """A target of ours, and its tensors in their files.

    Args:
        target: Name of the target.
        rules: Its tensors.
        marks: Their names that show that a file has it; without any, the architecture tells.
        config: Plain data of the target, as far as config.json does not say it.
    """

    target: str
    rules: tuple[Rule, ...] = ()
    marks: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Filled:
    """A tensor that their models have and ours may lack.

    Args:
        name: Its name.
        shape: Sizes, or keys of config.json that hold them; or what they follow from it by.
        target: Only classes with this target have it; "" for those without any, None for all.
        fill: Gives it values; it has zeros before.
    """

    name: str
    shape: tuple[int | str, ...] | Callable[[Plain], tuple[int, ...]]
    target: str | None = None
    fill: Callable[[Tensor], Tensor] = lambda zeros: zeros


@dataclass(frozen=True)
class LeftOut:
    """A target of ours that their classes have no place for, so that it is left out and told.

    Args:
        target: Name of the target.
        applies: Whether it must be left out of these targets.
        pooler: Module of theirs that its hidden layer becomes, where both read the first position.
    """

    target: str
    applies: Callable[[Mapping[str, Any]], bool]
    pooler: str


def unchanged(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    """Plain data of a model that the keys say completely."""
    return ()


def tied_by_default(settings: Settings, tensors: LazyTensors) -> bool:
    """Whether output layers are the word table, in families where they are unless told."""
    return bool(settings.get("tie_word_embeddings", True))


def never_tied(settings: Settings, tensors: LazyTensors) -> bool:
    """The same in families without a table of words."""
    return False


def nothing_else(settings: Settings) -> Plain | None:
    """Keys of an objective that is told by its name and the lengths of its rows."""
    return {}


def untied_by_default(settings: Settings, tensors: LazyTensors) -> bool:
    """The same in families where they are not unless told."""
    return bool(settings.get("tie_word_embeddings", False))


def add_decoder(config: Plain, data: Plain, specials: Specials, usual: Role) -> None:
    """Say in a config.json that there is a decoder, and which token it starts from."""
    config["is_encoder_decoder"] = True
    role = (data["objective"] or {}).get("start")
    if role is None and config.get("decoder_start_token_id") is not None:
        return
    role = role or usual
    if specials.get(role) is not None:
        config["decoder_start_token_id"] = specials[role]


def as_is(config: Plain, data: Plain, specials: Specials) -> None:
    """A config.json that the keys say completely."""


@dataclass(frozen=True)
class Family:
    """One family, in both directions.

    Args:
        name: What users call it.
        model_type: What config.json calls it.
        table: Tensors of the body.
        base: Plain data that all models of the family share.
        keys: What config.json says.
        architectures: Class by targets; "" without any target.
        heads: Possible targets; of several that claim a tensor the first one gets it.
        objective: Name of the one of pre-training for encoder-decoders.
        objective_keys: Keys of it beside its name, which come before the usual lengths; None where
            it cannot make such inputs.
        objectives: The same by targets, for families with objectives of their own; "" without any
            target, for what it says of preparing inputs.
        words: Our table of words, which counts the vocabulary and may be the output layer; None
            without any.
        preparation: Of inputs that are no text.
        expected: Keys of config.json and the only values that our parts know.
        prefix: What names of the body begin with in files of models with a target.
        aside: Patterns of their tensors that have no place here, and why.
        filled: What ours may lack.
        left_out: Targets that theirs may lack.
        sections: Keys of config.json that hold configs of parts; theirs are `section.key` here.
        aliases: Keys that a config.json may have instead of those that the others mention.
        is_tied: Whether output layers are the word table.
        numbers: Sizes that transforms ask for, out of config.json.
        to_model: Completes the plain data of a model; returns names of tensors of theirs that are
            zero and have no place then.
        to_config: Completes a config.json, given ids of special tokens.
    """

    name: str
    model_type: str
    table: Table
    base: Mapping[str, Any]
    keys: tuple[Key, ...]
    architectures: Mapping[str, str]
    heads: tuple[Head, ...] = ()
    objective: str | None = None
    objectives: Mapping[str, str] = field(default_factory=dict)
    objective_keys: Callable[[Settings], Plain | None] = nothing_else
    words: str | None = "embedding.word.weight"
    preparation: Preparation | None = None
    expected: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    aside: Mapping[str, str] = field(default_factory=dict)
    filled: tuple[Filled, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    sections: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    is_tied: Callable[[Settings, LazyTensors], bool] = tied_by_default
    numbers: Callable[[Settings], dict[str, int]] = lambda settings: {}
    to_model: Callable[[Plain, Settings, LazyTensors], tuple[str, ...]] = unchanged
    to_config: Callable[[Plain, Plain, Specials], None] = as_is

    def flat(self, config: Mapping[str, Any]) -> Plain:
        """A config.json without sections."""
        parts = {name: config[name] for name in self.sections if config.get(name) is not None}
        flat = {f"{name}.{key}": value for name in parts for key, value in parts[name].items()}
        return {key: value for key, value in config.items() if key not in self.sections} | flat

    def nested(self, config: Plain) -> Plain:
        """The inverse of `flat`, with keys in the sections that theirs have them in."""
        nested: Plain = {name: {} for name in self.sections}
        usual = {key: alias for alias, key in self.aliases.items()} if self.sections else {}
        for key, value in config.items():
            section, dot, name = usual.get(key, key).partition(".")
            place = nested[section] if dot and section in nested else nested
            place[name if place is not nested else key] = value
        return nested

    def settings(self, config: Mapping[str, Any]) -> Settings:
        """What is asked about a config.json."""
        return Settings(self.flat(config), self.aliases)

    def rules(self, targets: Mapping[str, Any]) -> tuple[Rule, ...]:
        """Rules of the body and of the heads for `targets`."""
        heads = [rule for head in self.heads if head.target in targets for rule in head.rules]
        return (*self.table.rules, *heads)

    def architecture(self, targets: Mapping[str, Any]) -> str | None:
        """Their class for a model with `targets`; None if there is none."""
        return self.architectures.get(" ".join(sorted(targets)))
