"""Adapters: a frozen model learns low-rank updates of chosen weights (LoRA and its kin)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from torch import Tensor, nn

from tencentpretrain.config import (
    ComponentConfig,
    ConfigError,
    PositiveFloat,
    PositiveInt,
    Probability,
    Problem,
    check,
    nearest,
)
from tencentpretrain.embeddings.base import EmbeddingPart
from tencentpretrain.wrappers.adapter import AdaptedLinear, AdaptedTable, Adapter, is_adaptable
from tencentpretrain.wrappers.base import WRAPPERS, Wrapper
from tencentpretrain.wrappers.factors import (
    DOWN,
    MAGNITUDE,
    MIXER,
    UP,
    DownName,
    MixerName,
    Update,
    is_factor,
    updated,
)

log = logging.getLogger("tencentpretrain")

HEADS: Final = "target.*"
MODULES: Final = [
    "encoder.*.attention.query",
    "encoder.*.attention.key",
    "encoder.*.attention.value",
    "encoder.*.feed_forward.up",
    "encoder.*.feed_forward.down",
]
"""What the language experiments of MoSLoRA adapt."""


class LoraConfig(ComponentConfig):
    """What all adapters have."""

    rank: PositiveInt = 16
    """Rank of the updates."""
    alpha: PositiveFloat = 32.0
    """The update is multiplied by alpha / rank."""
    rank_stabilised: bool = False
    """Whether to multiply by alpha / sqrt(rank) instead (rsLoRA)."""
    dropout: Probability = 0.05
    """Dropout rate of what an update of a linear layer reads."""
    modules: list[str] = MODULES
    """Patterns of the names of linear layers and embedding parts that get an update."""
    trained: list[str] = [HEADS]
    """Patterns of the names of further parameters that train, in full: heads by default."""
    a_init: DownName = "kaiming"
    """How the first factor starts: kaiming (uniform) or gaussian (deviation 1/rank); the other
    factor starts with zeros."""

    @check("modules")
    def _has_modules(self) -> str | None:
        return None if self.modules else "modules must have at least one pattern, but is empty"

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    def update(self) -> Update:
        """Kind of the updates."""
        return Update(self.rank, self.scale, self.dropout, self.a_init)


@WRAPPERS.register("lora")
class Lora(Wrapper):
    """LoRA: frozen weights learn updates of low rank (Hu et al., 2021)."""

    keeps_base = True

    class Config(LoraConfig):
        pass

    config: LoraConfig

    def apply(self, model: nn.Module) -> None:
        """Adapt what `modules` names, freeze the rest but for what `trained` names."""
        update = self.config.update()
        chosen = self._choose(model)
        _check_untied(model, chosen, self.key)
        if not any(isinstance(module, Adapter) for module in model.modules()):
            model.requires_grad_(False)  # another wrapper has done it, and decided what trains
        adapted: dict[int, nn.Module] = {}
        for name, module in chosen.items():
            adapted[id(module)] = self._adapt(module, update, name)
        for parent in list(model.modules()):
            for attribute, child in list(parent._modules.items()):
                if child is not None and id(child) in adapted:
                    setattr(parent, attribute, adapted[id(child)])
        self._train_further(model)
        self._tell(model, chosen)

    def _choose(self, model: nn.Module) -> dict[str, nn.Module]:
        """Modules to adapt by name; of heads none, because they train in full."""
        found = {
            name: module
            for name, module in model.named_modules()
            if is_adaptable(module) and not fnmatchcase(name, HEADS)
        }
        names = _matching(
            self.config.modules, found, f"{self.key}.modules", "linear layer or embedding part"
        )
        for name in names:
            if isinstance(found[name], Adapter):
                message = f"`{name}` has an update of another wrapper already; choose other modules"
                raise ConfigError.at(f"{self.key}.modules", message)
        return {name: found[name] for name in names}

    def _adapt(self, module: nn.Module, update: Update, name: str) -> nn.Module:
        if isinstance(module, nn.Linear):
            return AdaptedLinear(module, update, self.seed, name)
        assert isinstance(module, EmbeddingPart)
        if update.mixer != "none" or update.has_magnitude:
            message = f"`{name}` is a table, and tables can be adapted by name=lora only"
            raise ConfigError.at(f"{self.key}.modules", message)
        return AdaptedTable(module, update, self.seed, name)

    def _train_further(self, model: nn.Module) -> None:
        """Let train what `trained` names; a tied parameter only if it does so by all its names."""
        own = {id(m.weight) for m in model.modules() if isinstance(m, Adapter)}
        parameters: dict[int, tuple[nn.Parameter, list[str]]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) not in own and not is_factor(name):
                parameters.setdefault(id(parameter), (parameter, []))[1].append(name)
        known = [name for _, names in parameters.values() for name in names]
        asked = [pattern for pattern in self.config.trained if pattern != HEADS]
        _matching(asked, known, f"{self.key}.trained", "parameter without an update")
        for parameter, names in parameters.values():
            if all(_is_named(name, self.config.trained) for name in names):
                parameter.requires_grad_(True)

    def _tell(self, model: nn.Module, chosen: Iterable[str]) -> None:
        kinds = sorted({generic_name(name) for name in chosen})
        parameters = list(model.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        total = sum(p.numel() for p in parameters)
        log.info(
            f"{self.config.name}: {len(list(chosen))} modules with updates of rank "
            f"{self.config.rank} ({', '.join(kinds)}); {trained:,} of {total:,} parameters train "
            f"({trained / total:.2%})"
        )

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with the updates added; in fp32, then in their own type."""
        plain = {
            name: tensor
            for name, tensor in tensors.items()
            if not (is_factor(name) and self.adapts(name.rpartition(".")[0]))
        }
        for name in tensors:
            module, _, factor = name.rpartition(".")
            if factor == DOWN and self.adapts(module):
                mixer, magnitude = (tensors.get(f"{module}.{part}") for part in (MIXER, MAGNITUDE))
                weight, up = tensors[f"{module}.weight"], tensors[f"{module}.{UP}"]
                plain[f"{module}.weight"] = updated(
                    weight, tensors[name], up, self.config.scale, mixer, magnitude
                )
        return plain

    def adapts(self, module: str) -> bool:
        """Whether an update of the module of this name is this wrapper's."""
        return _is_named(module, self.config.modules)


@WRAPPERS.register("moslora")
class Moslora(Lora):
    """MoSLoRA: LoRA with a small matrix between the factors that mixes them (Wu et al., 2024)."""

    class Config(LoraConfig):
        mixer: MixerName = "kaiming"
        """How the mixer starts: kaiming (published), kaiming_unit (kept in scale, sqrt(3) times
        that), orthogonal (published too), identity, normal, butterfly, zeros; none leaves it
        out."""
        mixer_trained: bool | None = None
        """Whether the mixer trains; null trains all but the butterfly."""
        mixer_lr_scale: PositiveFloat = 1.0
        """Factor of the learning rate of the mixer."""
        allow_dead_init: bool = False
        """Whether the mixer may start with zeros, from where no training ever starts."""

        @check("mixer", "allow_dead_init")
        def _mixer_lives(self) -> str | None:
            if self.mixer != "zeros" or self.allow_dead_init:
                return None
            return (
                "mixer must not be zeros: all gradients would be zero for ever; choose another, "
                "or accept that with allow_dead_init=true"
            )

        @check("mixer", "rank")
        def _butterfly_fits(self) -> str | None:
            if self.mixer != "butterfly" or self.rank % 2 == 0:
                return None
            return f"rank must be even for mixer=butterfly, but is {self.rank}"

        def update(self) -> Update:
            trains = self.mixer != "butterfly" if self.mixer_trained is None else self.mixer_trained
            return replace(
                super().update(),
                mixer=self.mixer,
                is_mixer_trained=trains,
                mixer_rate=self.mixer_lr_scale,
            )


@WRAPPERS.register("dora")
class Dora(Lora):
    """DoRA: as LoRA, but the norms of a weight's rows are learned apart (Liu et al., 2024)."""

    class Config(LoraConfig):
        def update(self) -> Update:
            return replace(super().update(), has_magnitude=True)


def _is_named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def generic_name(name: str) -> str:
    """A name with `*` for numbers of layers, as a pattern would say it."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _matching(patterns: Sequence[str], names: Iterable[str], key: str, kind: str) -> list[str]:
    """Those of `names` that a pattern matches.

    Raises:
        ConfigError: with every pattern that matches nothing, and the nearest that would.
    """
    names = list(names)
    generic = {generic_name(name) for name in names}
    problems = [
        Problem(key, f"`{pattern}` matches no {kind} of the model; {nearest(pattern, generic)}")
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if problems:
        raise ConfigError(problems)
    return [name for name in names if _is_named(name, patterns)]


def _check_untied(model: nn.Module, chosen: Mapping[str, nn.Module], key: str) -> None:
    """Refuse weights that others compute with, too: these would not get the update.

    Raises:
        ConfigError: naming both.
    """
    owned = {id(module.get_parameter("weight")): name for name, module in chosen.items()}
    for other, parameter in model.named_parameters(remove_duplicate=False):
        name = owned.get(id(parameter))
        if name is not None and model.get_submodule(other.rpartition(".")[0]) is not chosen[name]:
            message = (
                f"the weight of `{name}` is that of `{other}`, too, which would not get the "
                "update; choose other modules, or train it in full with `trained`"
            )
            raise ConfigError.at(f"{key}.modules", message)
