"""Learning from a teacher (Hinton et al., 2015), around any target with a cross entropy."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field
from torch import Tensor, nn

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    ConfigError,
    PathLike,
    PositiveFloat,
    SerializeAsAny,
    check,
)
from tencentpretrain.distill.answers import TEACHING
from tencentpretrain.distill.divergences import DIVERGENCES, Divergence
from tencentpretrain.distill.features import (
    AttentionConfig,
    AttentionLoss,
    Feature,
    HiddenConfig,
    HiddenLoss,
    RelationConfig,
    RelationLoss,
)
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Target, TargetConfig
from tencentpretrain.targets.companion import Companion, Setting
from tencentpretrain.targets.heads import ClassTarget, VocabularyTarget
from tencentpretrain.targets.soft_loss import Head, Terms, distillation_loss
from tencentpretrain.train.precision import PrecisionName, resolve_precision
from tencentpretrain.types import SRC, TGT, Batch, ModelOutput, Ratio, TargetOutput, Want

FEATURES: Final[dict[str, type[Feature]]] = {
    "hidden": HiddenLoss,
    "attention": AttentionLoss,
    "relations": RelationLoss,
}
HELPERS: Final = "features"
"""Submodule of what only training needs; a student without its teacher leaves it out."""


@TARGETS.register("distill")
class DistillTarget(Target):
    """Learns its labels as another target does, and what a frozen teacher says of them.

    It is called like that other target and is one of its class: parameters, answers, and what tools
    ask of it are those of a model that never had a teacher. Without what a teacher says, as in
    evaluation, its loss is that of the other target.
    """

    class Config(TargetConfig):
        inner: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(TARGETS)] = None
        """Target that the student is to have; null is the one that is called like this."""
        teacher: PathLike | None = None
        """Run directory or checkpoint of a model with the same vocabulary and such a target."""
        stored: PathLike | None = None
        """Instead of teacher: what scripts/store_teacher.py has written for these examples."""
        precision: PrecisionName = "auto"
        """Type of the teacher's weights and products: auto (as the student's products), fp32 or
        bf16."""
        divergence: Annotated[SerializeAsAny[ComponentConfig], Choice(DIVERGENCES, "fkl")] = (
            DIVERGENCES.default("fkl")
        )
        """How far the student's distribution is from the teacher's."""
        ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
        """Part of the divergence in the loss; the cross entropy with the labels has the rest."""
        temperature: PositiveFloat = 1.0
        """What logits of both are divided by in the divergence."""
        scale_temperature: bool = False
        """Whether the divergence is multiplied by the square of the temperature, so that gradients
        stay as large."""
        hidden: HiddenConfig | None = None
        """Also compare hidden states of layers; null does not."""
        attention: AttentionConfig | None = None
        """Also compare attention probabilities of layers; null does not."""
        relations: RelationConfig | None = None
        """Also compare relations of positions in layers (MiniLM); null does not."""

        @check("teacher", "stored")
        def _one_teacher(self) -> str | None:
            if (self.teacher is None) != (self.stored is None):
                return None
            return "give either teacher, a run, or stored, what a teacher has said"

        @check("inner")
        def _inner_is_plain(self) -> str | None:
            if self.inner is None or _is_plain(TARGETS.get(self.inner.name)):
                return None
            return f"inner must be a target with a plain cross entropy, but is `{self.inner.name}`"

        @check("stored", "divergence", "temperature", "hidden", "attention", "relations")
        def _is_stored(self) -> str | None:
            if self.stored is None:
                return None
            found = [name for name in FEATURES if getattr(self, name) is not None]
            if found:
                return f"{found[0]} compares layers, which are not stored; give teacher instead"
            if _class(self.divergence).needs_logits:
                name = self.divergence.name
                return f"divergence={name} needs logits, which are not stored; give teacher instead"
            return None

    def __new__(cls, *args: Any, **kwargs: Any) -> DistillTarget:
        """An instance of this class and of that of the inner target at once."""
        if cls is DistillTarget:
            cls = _around(_inner_class(*args, **kwargs))
        target: DistillTarget = super().__new__(cls)
        return target

    def __init__(self, config: Config, sizes: Sizes, name: str = "distill") -> None:
        inner: Any = super()
        inner.__init__(_inner(config, name), sizes, name)
        self.config = config
        self.divergence = DIVERGENCES.build(config.divergence)
        chosen = {name: keys for name in FEATURES if (keys := getattr(config, name)) is not None}
        modules = {name: FEATURES[name](keys, sizes.hidden) for name, keys in chosen.items()}
        self.add_module(HELPERS, nn.ModuleDict(modules))
        for feature in self._features().values():
            self.want |= feature.student_want

    def _features(self) -> dict[str, Feature]:
        """Losses between layers by full name."""
        module = self.get_submodule(HELPERS)
        return {
            f"{self.label}/{k}": f for k, f in module.named_children() if isinstance(f, Feature)
        }

    def terms(self) -> Terms:
        """What the loss of a position is made of."""
        config = self.config
        return Terms(
            self.divergence,
            config.ratio,
            config.temperature,
            config.temperature**2 if config.scale_temperature else 1.0,
            getattr(self, "smoothing", 0.0),
        )

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        teaching = batch.extras.get(TEACHING, {}).get(self.label)
        if teaching is None:
            inner: Any = super()
            plain: TargetOutput = inner.forward(out, batch)
            return plain
        labels = batch.labels[self.label].values.flatten()
        if isinstance(self, VocabularyTarget):
            states, head = self.transform(out, batch), Head(self.output.weight, self.output.bias)
        else:
            states, head = self.logits(out, batch), Head()
        loss, figures = distillation_loss(states, head, labels, teaching.answer, self.terms())
        losses: dict[str, Ratio] = {self.label: loss}
        for name, feature in self._features().items():
            losses[name] = feature(out, teaching.output)
        return TargetOutput(losses, {f"{self.label}/{n}": f for n, f in figures.items()})

    def further(self) -> dict[str, float]:
        return {name: feature.config.weight for name, feature in self._features().items()}

    def further_units(self, batch: Batch) -> dict[str, Tensor]:
        units = {}
        for name, feature in self._features().items():
            is_last = feature.config.part == "last" and TGT in batch.streams
            units[name] = batch.streams[TGT if is_last else SRC].layout.valid.sum()
        return units

    def companion(self, setting: Setting) -> Companion:
        """The teacher, or the examples with what it has said.

        Raises:
            UserError: if it cannot be had, or does not fit.
        """
        # These read runs and shards, and so import what imports targets.
        from tencentpretrain.data.shard_format import INDEX
        from tencentpretrain.distill.stored import StoredExamples, check_stored, open_store
        from tencentpretrain.distill.teacher import Teacher

        config = self.config
        if config.stored is not None:
            store = open_store(config.stored, setting)
            check_stored(store, self.divergence, config.temperature)
            examples = StoredExamples(setting.examples, store, self.label)
            return Companion(examples=examples, fingerprints={"teacher": store.fingerprint})
        dtype = setting.dtype
        if config.precision != "auto":
            dtype = resolve_precision(config.precision, setting.device)
        assert config.teacher is not None
        if (Path(config.teacher) / INDEX).is_file():
            raise ConfigError.at(
                f"model.target.{self.label}.teacher",
                f"{config.teacher} holds shards, not a run; what a teacher has said is `stored`",
            )
        teacher = Teacher.of(config.teacher, dtype, setting)
        wants = [feature.teacher_want for feature in self._features().values()]
        teacher.teach(self.label, functools.reduce(Want.__or__, wants, Want()))
        return Companion(teacher, fingerprints={"teacher": teacher.fingerprint})


def _class(divergence: ComponentConfig) -> type[Divergence]:
    return DIVERGENCES.get(divergence.name)


def _is_plain(cls: type[Target]) -> bool:
    """Whether the loss of a target is the cross entropy that is computed here."""
    return cls.forward in (VocabularyTarget.forward, ClassTarget.forward)


def _inner(config: DistillTarget.Config, name: str) -> ComponentConfig:
    """Config of the target that the student is to have.

    Raises:
        ConfigError: if it is not given, and none is called `name`.
    """
    if config.inner is not None:
        return config.inner
    where = f"model.target.{name}.inner"
    if name not in TARGETS:
        raise ConfigError.at(where, f"is required, because no target is called `{name}`")
    try:
        found = TARGETS.default(name)
    except ValueError as error:
        raise ConfigError.at(where, f"is required: `{name}` has keys without a default") from error
    if not _is_plain(TARGETS.get(found.name)):
        raise ConfigError.at(where, f"must be a target with a plain cross entropy, not `{name}`")
    return found


def _inner_class(config: DistillTarget.Config, sizes: Sizes, name: str = "distill") -> type[Target]:
    return TARGETS.get(_inner(config, name).name)


@functools.cache
def _around(inner: type[Target]) -> type[DistillTarget]:
    """The class of targets that are `inner` and have a teacher."""
    return type(f"Distilled{inner.__name__}", (DistillTarget, inner), {})
