from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.distill.features import (
    AttentionConfig,
    AttentionLoss,
    Feature,
    HiddenConfig,
    HiddenLoss,
    RelationConfig,
    RelationLoss,
)
from tencentpretrain.errors import CheckpointError, TrainingError
from tencentpretrain.model import Model
from tencentpretrain.types import Batch, Hidden, Layout, ModelOutput, Want
from tests.helpers.models import randomise, text_batch, tiny_model

KINDS: dict[str, tuple[type[Any], type[Feature]]] = {
    "hidden": (HiddenConfig, HiddenLoss),
    "attention": (AttentionConfig, AttentionLoss),
    "relations": (RelationConfig, RelationLoss),
}
TEACHER = {"hidden": 24, "encoder": {"layers": 3, "heads": 4, "ffn": 24}}


def feature_of(kind: str, hidden: int = 16, **keys: Any) -> Feature:
    config, cls = KINDS[kind]
    feature = cls(decode(config, keys), hidden)
    randomise(feature)
    return feature


def model_of(name: str = "bert/tiny", *overrides: Any, seed: int = 0) -> Model:
    model = tiny_model(name, *overrides, seed=seed).eval()
    torch.manual_seed(seed)
    randomise(model)
    return model


def outputs(feature: Feature, batch: Batch, name: str = "bert/tiny") -> list[ModelOutput]:
    """What student and teacher return."""
    pairs = (
        (model_of(name), feature.student_want),
        (model_of(name, TEACHER, seed=1), feature.teacher_want),
    )
    return [model.encode(batch, want) for model, want in pairs]


def test_states_are_projected_and_compared_at_valid_positions() -> None:
    feature = feature_of("hidden", layers={0: 0, 2: 3}, size=24)
    batch = text_batch((6, 3))
    student, teacher = outputs(feature, batch)
    valid = batch.streams["src"].layout.valid
    losses = []
    for number, (mine, theirs) in enumerate(((0, 0), (1, 1))):
        projected = feature.get_submodule(f"projections.{number}")(student.hidden.layers[mine])
        losses.append((projected - teacher.hidden.layers[theirs]).square().mean(-1)[valid].sum())
    result = feature(student, teacher)
    torch.testing.assert_close(result.total, sum(losses) / 2)
    assert int(result.count) == 9


def test_states_of_equal_width_may_be_compared_by_their_angle() -> None:
    feature = feature_of("hidden", layers={1: 2}, loss="cosine")
    batch = text_batch((5, 5))
    student = model_of().encode(batch, feature.student_want)
    teacher = model_of(seed=1).encode(batch, feature.teacher_want)
    cosine = F.cosine_similarity(student.hidden.layers[0], teacher.hidden.layers[0], dim=-1)
    torch.testing.assert_close(feature(student, teacher).total, (1 - cosine).sum())
    assert list(feature.parameters()) == []


def test_attention_is_compared_head_by_head_or_by_the_mean() -> None:
    batch = text_batch((6, 3))
    valid = batch.streams["src"].layout.valid
    mean = feature_of("attention", layers={2: 3}, mean_heads=True)
    student, teacher = outputs(mean, batch)
    with pytest.raises(CheckpointError, match="mean_heads"):
        feature_of("attention", layers={2: 3})(student, teacher)
    p, q = (out.hidden.attentions[0].mean(1) for out in (teacher, student))
    expected = torch.where(p > 0, p * (p.clamp(min=1e-30) / q.clamp(min=1e-30)).log(), 0.0)
    torch.testing.assert_close(mean(student, teacher).total, expected.sum(-1)[valid].sum())
    squared = feature_of("attention", layers={2: 3}, mean_heads=True, loss="mse")
    expected = (p - q).square().mean(-1)[valid].sum()
    torch.testing.assert_close(squared(student, teacher).total, expected)


def naive_relations(states: Tensor, heads: int, seen: Tensor) -> Tensor:
    """[R, S, S] of one row of states [S, W]."""
    size = states.shape[-1] // heads
    rows = []
    for head in range(heads):
        piece = states[:, head * size : (head + 1) * size]
        scores = piece @ piece.T / size**0.5
        rows.append(scores.masked_fill(~seen, -torch.inf).softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("isolated", [False, True])
def test_relations_are_those_of_queries_keys_and_values(isolated: bool) -> None:
    feature = feature_of("relations", layers={1: 3}, heads=8)
    batch = text_batch((6, 3))
    layout = batch.streams["src"].layout
    if isolated:
        layout.documents = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 0, 0, 0]])
    student, teacher = outputs(feature, batch)
    total = 0.0
    for row, length in enumerate((6, 3)):
        seen = torch.ones(length, length, dtype=torch.bool)
        if layout.documents is not None:
            documents = layout.documents[row, :length]
            seen = documents[:, None] == documents
        for place in range(3):
            p, q = (
                naive_relations(out.hidden.projections[0][place][row, :length], 8, seen)
                for out in (teacher, student)
            )
            total += torch.where(seen, p * (p / q).log(), 0.0).sum() / 8 / 3
    torch.testing.assert_close(feature(student, teacher).total, total)


def test_projections_are_those_that_attention_computes() -> None:
    model = model_of("gpt2/tiny")
    batch = text_batch((4, 2), targets=("lm",))
    out = model.encode(batch, Want(layers=(1,), projections=(2,)))
    block: Any = model.encoder.blocks()[1]
    inputs = block.attention_norm(out.hidden.layers[0])
    valid = batch.streams["src"].layout.valid
    for states, name in zip(out.hidden.projections[0], ("query", "key", "value"), strict=True):
        expected = getattr(block.attention, name)(inputs)[valid]
        torch.testing.assert_close(states[valid], expected)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_longer_padding_changes_nothing(kind: str) -> None:
    keys: dict[str, Any] = {
        "hidden": {"size": 24},
        "attention": {"mean_heads": True},
        "relations": {"heads": 4},
    }[kind]
    feature = feature_of(kind, layers={1: 2, 2: 3}, **keys)
    results = []
    for width in (6, 11):
        batch = text_batch((6, 3))
        layout = batch.streams["src"].layout
        if width > 6:
            grown = {n: F.pad(t, (0, 5), value=1) for n, t in batch.streams["src"].inputs.items()}
            batch.streams["src"].inputs = grown
            batch.streams["src"].layout = Layout.of(F.pad(layout.valid, (0, 5)))
        results.append(feature(*outputs(feature, batch)))
    torch.testing.assert_close(results[0].total, results[1].total)
    assert int(results[0].count) == int(results[1].count)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_student_that_is_its_teacher_has_no_loss(kind: str) -> None:
    keys = {"heads": 4} if kind == "relations" else {}
    feature, model, batch = (
        feature_of(kind, layers={1: 1, 2: 2}, **keys),
        model_of(),
        text_batch((5,)),
    )
    out = model.encode(batch, feature.student_want)
    assert abs(float(feature(out, out).total.detach())) < 1e-5


def test_layers_of_the_encoder_of_an_encoder_decoder() -> None:
    layout = Layout.of(torch.ones(1, 2, dtype=torch.bool))
    want = Want(layers=(1,))
    encoder, decoder = (
        Hidden(torch.zeros(1, 2, 4), layout, (torch.full((1, 2, 4), value),))
        for value in (1.0, 2.0)
    )
    out = ModelOutput(decoder, {"src": encoder}, want)
    zero = Hidden(torch.zeros(1, 2, 4), layout, (torch.zeros(1, 2, 4),))
    teacher = ModelOutput(zero, {"src": zero}, want)
    for part, value in (("last", 4.0), ("encoder", 1.0)):
        feature = feature_of("hidden", hidden=4, layers={1: 1}, part=part)
        assert float(feature(out, teacher).value) == value


def test_what_cannot_be_compared_is_named() -> None:
    batch = text_batch((4,))
    feature = feature_of("hidden", layers={1: 1})
    with pytest.raises(CheckpointError, match=r"set hidden\.size=24"):
        feature(*outputs(feature, batch))
    feature = feature_of("relations", layers={1: 1}, heads=5)
    with pytest.raises(CheckpointError, match=r"must divide the width 16 of .*, but is 5"):
        feature(*outputs(feature, batch))
    feature = feature_of("hidden", layers={9: 1}, size=24)
    with pytest.raises(TrainingError, match=r"layers 9 were asked .* none of them came back"):
        feature(*outputs(feature, batch))


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("hidden", {"layers": {}}, "at least one pair"),
        ("hidden", {"layers": {-1: 2}}, "must be at least 0"),
        ("attention", {"layers": {0: 1}}, "counted from 1"),
        ("relations", {"layers": {1: 1}, "of": []}, "must have at least one of query"),
    ],
)
def test_impossible_keys_are_refused(kind: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        feature_of(kind, **keys)
