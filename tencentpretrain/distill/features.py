"""Losses between inner layers of student and teacher: states, attention, relations of projections.

Shapes: B rows, S positions, D and D' widths of student and teacher, N heads, R relation heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.config import Config, PositiveFloat, PositiveInt, check
from tencentpretrain.errors import CheckpointError, TrainingError
from tencentpretrain.types import SRC, Hidden, Layout, ModelOutput, Ratio, Want

Part = Literal["last", "encoder"]
Relation = Literal["query", "key", "value"]
RELATIONS: tuple[Relation, ...] = ("query", "key", "value")


class FeatureConfig(Config):
    """Which layers are compared."""

    layers: dict[int, int]
    """Layers of the student and those of the teacher that they learn from, counted from 1."""
    part: Part = "last"
    """Whose layers: those of the last part of the model, a decoder if it has one, or of the
    encoder."""
    weight: PositiveFloat = 1.0
    """Factor of this loss beside the main one."""

    @check("layers")
    def _has_layers(self) -> str | None:
        if not self.layers:
            return "layers must have at least one pair, such as {2: 4}"
        numbers = (*self.layers, *self.layers.values())
        return None if min(numbers) >= 1 else self._too_low()

    def _too_low(self) -> str | None:
        return f"layers are counted from 1, but are {self.layers}"


class HiddenConfig(FeatureConfig):
    """Compare hidden states; number 0 is the output of the embedding."""

    loss: Literal["mse", "cosine"] = "mse"
    """Mean over the width of the squared difference (mse), or 1 - cosine (DistilBERT)."""
    size: PositiveInt | None = None
    """Width of the teacher, to which a learned matrix for each layer projects the student's states;
    null compares states of equal widths as they are."""

    def _too_low(self) -> str | None:
        lowest = min((*self.layers, *self.layers.values()))
        return f"layers must be at least 0, but one is {lowest}" if lowest < 0 else None


class AttentionConfig(FeatureConfig):
    """Compare attention probabilities."""

    loss: Literal["kl", "mse"] = "kl"
    """KL(teacher || student) of each query (kl), or mean over keys of the squared difference."""
    mean_heads: bool = False
    """Whether heads are averaged first, which models with different numbers of them need."""


class RelationConfig(FeatureConfig):
    """Compare relations between positions: softmax of products of their queries, keys or values."""

    of: list[Relation] = [*RELATIONS]
    """What relations are made of; their losses are averaged."""
    heads: PositiveInt = 12
    """Relation heads, into which the widths of both models are divided."""

    @check("of")
    def _has_relations(self) -> str | None:
        return None if self.of else f"of must have at least one of {', '.join(RELATIONS)}"


class Feature(nn.Module, ABC):
    """A loss over positions, the mean of those of its pairs of layers.

    Args:
        config: An instance of the class's config.
        hidden: Width D of the student.
    """

    def __init__(self, config: Any, hidden: int) -> None:
        super().__init__()
        self.config = config

    def want(self, numbers: Iterable[int]) -> Want:
        """The wish for layers with these numbers."""
        return Want(**{self.kind: tuple(sorted(set(numbers)))})

    @property
    @abstractmethod
    def kind(self) -> str:
        """What is wanted of layers, a field of `Want` and of `Hidden`."""

    @property
    def student_want(self) -> Want:
        return self.want(self.config.layers)

    @property
    def teacher_want(self) -> Want:
        return self.want(self.config.layers.values())

    def layout(self, out: ModelOutput) -> Layout:
        """Layout of the positions that are compared."""
        return self._hidden(out).layout

    def forward(self, student: ModelOutput, teacher: ModelOutput) -> Ratio:
        """Sum over valid positions and their number.

        Raises:
            TrainingError: if a model does not return such layers, or they cannot be compared.
        """
        valid = self.layout(student).valid
        total = valid.new_zeros((), dtype=torch.float32)
        for number, (mine, theirs) in enumerate(self.config.layers.items()):
            pair = self._layer(student, mine), self._layer(teacher, theirs)
            with torch.autocast(valid.device.type, enabled=False):
                losses = self.compare(number, *pair, self.layout(student))
                total = total + losses.where(valid, 0.0).sum()
        return Ratio(total / len(self.config.layers), valid.sum())

    @abstractmethod
    def compare(self, number: int, student: Any, teacher: Any, layout: Layout) -> Tensor:
        """Losses [B, S] of pair `number`; what padding gets is not read."""

    def _hidden(self, out: ModelOutput) -> Hidden:
        return out.encoded[SRC] if self.config.part == "encoder" else out.hidden

    def _layer(self, out: ModelOutput, number: int) -> Any:
        found = getattr(self._hidden(out), self.kind)
        numbers = getattr(out.want, self.kind)
        if len(found) != len(numbers):
            raise TrainingError(
                f"layers {', '.join(map(str, numbers))} were asked for their {self.kind}, but "
                f"{len(found) or 'none'} of them came back: the model has fewer layers, or of a "
                "kind that has no such thing"
            )
        return found[numbers.index(number)]


class HiddenLoss(Feature):
    """States of layers (Romero et al., 2015; Jiao et al., 2020, TinyBERT, equations 8 and 9)."""

    kind = "layers"

    def __init__(self, config: HiddenConfig, hidden: int) -> None:
        super().__init__(config, hidden)
        self.projections = nn.ModuleList()
        if config.size is not None:
            for _ in config.layers:
                self.projections.append(nn.Linear(hidden, config.size, bias=False))

    def compare(self, number: int, student: Tensor, teacher: Tensor, layout: Layout) -> Tensor:
        student = student.float()
        if len(self.projections):
            student = self.projections[number](student)
        if student.shape != teacher.shape:
            raise CheckpointError(
                f"states of width {student.shape[-1]} cannot be compared with the teacher's of "
                f"width {teacher.shape[-1]}; set hidden.size={teacher.shape[-1]}"
            )
        if self.config.loss == "cosine":
            return 1 - F.cosine_similarity(student, teacher.float(), dim=-1)
        return (student - teacher.float()).square().mean(-1)


class AttentionLoss(Feature):
    """Attention probabilities (Jiao et al., 2020; Wang et al., 2020, MiniLM, equation 2)."""

    kind = "attentions"

    def compare(self, number: int, student: Tensor, teacher: Tensor, layout: Layout) -> Tensor:
        student, teacher = student.float(), teacher.float()
        if self.config.mean_heads:
            student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
        if student.shape[1] != teacher.shape[1]:
            raise CheckpointError(
                f"{student.shape[1]} attention heads cannot be compared with the teacher's "
                f"{teacher.shape[1]}; average them with attention.mean_heads=true"
            )
        if self.config.loss == "mse":
            return (student - teacher).square().mean(-1).mean(1)
        return _divergence(teacher, student.clamp(min=torch.finfo(student.dtype).tiny).log())


class RelationLoss(Feature):
    """Self-attention relations of MiniLMv2 (Wang et al., 2021, section 3.1).

    Those of values with as many heads as attention has are the value relations of MiniLM.
    """

    kind = "projections"

    def compare(
        self,
        number: int,
        student: tuple[Tensor, ...],
        teacher: tuple[Tensor, ...],
        layout: Layout,
    ) -> Tensor:
        losses = []
        for name in self.config.of:
            place = RELATIONS.index(name)
            mine = self._relations(student[place], layout)
            theirs = self._relations(teacher[place], layout)
            losses.append(_divergence(theirs.exp(), mine))
        return torch.stack(losses).mean(0)

    def _relations(self, states: Tensor, layout: Layout) -> Tensor:
        """Log-probabilities [B, R, S, S] over the valid positions of the same document."""
        heads = self.config.heads
        if states.shape[-1] % heads:
            raise CheckpointError(
                f"relations.heads must divide the width {states.shape[-1]} of what relations are "
                f"made of, but is {heads}"
            )
        pieces = states.float().unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = pieces @ pieces.transpose(-2, -1) / pieces.shape[-1] ** 0.5
        seen = layout.valid[:, None, None, :]
        if layout.documents is not None:
            documents = layout.documents
            seen = seen & (documents[:, :, None] == documents[:, None, :])[:, None]
        # Finite, so that what is hidden from both differs by nothing.
        hidden: Tensor = scores.masked_fill(~seen, torch.finfo(scores.dtype).min / 2)
        return hidden.log_softmax(-1)


def _divergence(teacher: Tensor, log_student: Tensor) -> Tensor:
    """KL(teacher || student) over keys, the mean [B, S] over heads."""
    return (torch.xlogy(teacher, teacher) - teacher * log_student).sum(-1).mean(1)
