"""A target with a teacher around it is the target that it is around, and its loss is the mix."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.distill.answers import TEACHING, StatesAnswer, Teaching, add_teaching
from tencentpretrain.distill.divergences import divergence_of
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Target
from tencentpretrain.targets.companion import without_companions, without_helpers
from tencentpretrain.targets.distill import DistillTarget
from tencentpretrain.targets.lm import LmTarget
from tencentpretrain.targets.mlm import MlmTarget
from tencentpretrain.targets.span import NEVER
from tencentpretrain.train.load import load_weights, state_tensors
from tencentpretrain.types import (
    IGNORE,
    Batch,
    Hidden,
    Labels,
    ModelOutput,
    Stream,
    TargetOutput,
)
from tests.helpers.distill import divergence
from tests.helpers.models import (
    TINY,
    VOCABULARY,
    layout_of,
    model_data,
    randomise,
    text_batch,
)


def data_of(name: str, target: str, **keys: Any) -> dict[str, Any]:
    """Plain data of a tiny model whose `target` has a teacher."""
    data = model_data(name, TINY)
    inner = data["target"][target]
    given = {"name": "distill", "teacher": "runs/large", **keys}
    data["target"][target] = given | ({"inner": {"name": target, **inner}} if inner else {})
    return data


def model_of(data: Mapping[str, Any], seed: int = 0) -> Model:
    model = build_model(decode(ModelConfig, data), VOCABULARY, seed=seed).eval()
    torch.manual_seed(seed)
    randomise(model)
    return model


def taught(batch: Batch, label: str, logits: Tensor) -> Batch:
    return add_teaching(batch, {label: Teaching(StatesAnswer(logits))})


def teacher_logits(batch: Batch, label: str, classes: int = VOCABULARY) -> Tensor:
    return torch.randn(batch.labels[label].values.numel(), classes)


@pytest.mark.parametrize(
    ("name", "label"),
    [("gpt2/tiny", "lm"), ("bert/tiny", "mlm"), ("bert/tiny", "nsp"), ("t5/small", "lm")],
)
def test_names_answers_and_losses_without_a_teacher_are_those_of_the_plain_model(
    name: str, label: str
) -> None:
    data = data_of(name, label)
    student, plain = model_of(data), model_of(without_companions(data), seed=1)
    assert [n for n, _ in student.named_parameters()] == [n for n, _ in plain.named_parameters()]
    load_weights(plain, state_tensors(student))
    if name.startswith("t5"):
        return
    batch = text_batch((6, 3), targets=student.target.names)
    results: list[TargetOutput] = [model(batch) for model in (student, plain)]
    assert results[0].losses.keys() == results[1].losses.keys()
    for ours, theirs in zip(results[0].losses.values(), results[1].losses.values(), strict=True):
        assert torch.equal(ours.total, theirs.total)
    assert torch.equal(
        student.target[label].logits(student.encode(batch), batch),
        plain.target[label].logits(plain.encode(batch), batch),
    )


def test_it_is_of_the_class_of_the_inner_target() -> None:
    for name, label, cls in (("gpt2/tiny", "lm", LmTarget), ("bert/tiny", "mlm", MlmTarget)):
        target = model_of(data_of(name, label)).target[label]
        assert isinstance(target, DistillTarget)
        assert isinstance(target, cls)
        copied = copy.deepcopy(target)
        assert type(copied) is type(target)
        assert copied.state_dict().keys() == target.state_dict().keys()


@pytest.mark.parametrize(("name", "label"), [("gpt2/tiny", "lm"), ("bert/tiny", "nsp")])
def test_the_loss_is_the_weighted_sum_of_hard_and_soft(name: str, label: str) -> None:
    keys = {"ratio": 0.3, "temperature": 2.0, "scale_temperature": True, "divergence": "rkl"}
    model = model_of(data_of(name, label, **keys))
    batch = text_batch((6, 3), targets=model.target.names)
    logits = model.target[label].logits(model.encode(batch), batch)
    theirs = teacher_logits(batch, label, logits.shape[-1])
    result = model(taught(batch, label, theirs))
    values = batch.labels[label].values
    hard = F.cross_entropy(logits, values, reduction="sum")
    soft = divergence_of(logits, theirs, divergence("rkl"), 2.0).sum()
    torch.testing.assert_close(result.losses[label].total, 0.7 * hard + 0.3 * 4 * soft)
    assert int(result.losses[label].count) == int(model.target.units(batch)[label]) == len(values)
    wanted = {"ce", "divergence", "fkl", "rkl", "soft_ce", "accuracy"}
    assert {f"{label}/{figure}" for figure in wanted} <= result.metrics.keys()
    torch.testing.assert_close(result.metrics[f"{label}/ce"].total, hard)


def test_labels_are_smoothed_as_the_inner_target_does() -> None:
    inner = {"name": "lm", "label_smoothing": 0.2}
    model = model_of(data_of("gpt2/tiny", "lm", inner=inner))
    batch = text_batch((6, 3), targets=("lm",))
    logits = model.target["lm"].logits(model.encode(batch), batch)
    hard = F.cross_entropy(logits, batch.labels["lm"].values, label_smoothing=0.2, reduction="sum")
    figures = model(taught(batch, "lm", teacher_logits(batch, "lm"))).metrics
    torch.testing.assert_close(figures["lm/ce"].total, hard)


def test_more_padding_and_more_padded_rows_change_nothing() -> None:
    model = model_of(data_of("bert/tiny", "mlm", divergence="akl"))
    narrow = text_batch((6, 3))
    inputs = {n: F.pad(t, (0, 3, 0, 1)) for n, t in narrow.streams["src"].inputs.items()}
    labels = narrow.labels["mlm"]
    assert labels.index is not None
    moved = labels.index // 6 * 9 + labels.index % 6
    wide = Batch(
        {"src": Stream(inputs, layout_of((6, 3, 0), 9))}, {"mlm": Labels(labels.values, moved)}
    )
    theirs = teacher_logits(narrow, "mlm")
    losses = [
        model.target["mlm"](model.encode(batch), taught(batch, "mlm", theirs)).losses["mlm"]
        for batch in (narrow, wide)
    ]
    torch.testing.assert_close(losses[0].total, losses[1].total)


def test_a_grid_with_positions_that_do_not_count_is_the_same() -> None:
    model = model_of(data_of("gpt2/tiny", "lm", divergence="akl"))
    chosen = text_batch((6, 6), targets=("lm",))
    labels, theirs = chosen.labels["lm"], teacher_logits(chosen, "lm")
    assert labels.index is not None
    grid, logits = torch.full((2, 6), IGNORE), torch.full((12, VOCABULARY), torch.nan)
    grid.view(-1)[labels.index], logits[labels.index] = labels.values, theirs
    everywhere = text_batch((6, 6), targets=("lm",))
    everywhere.labels["lm"] = Labels(grid)
    losses = [
        model(taught(batch, "lm", said)).losses["lm"]
        for batch, said in ((chosen, theirs), (everywhere, logits))
    ]
    torch.testing.assert_close(losses[0].total, losses[1].total)
    assert int(losses[0].count) == int(losses[1].count)


def test_layers_are_asked_for_and_weighed_beside() -> None:
    keys = {
        "weight": 0.5,
        "hidden": {"layers": {1: 2}, "weight": 10.0, "size": 16},
        "attention": {"layers": {2: 3}},
        "relations": {"layers": {2: 1}, "heads": 4},
    }
    model = model_of(data_of("bert/tiny", "mlm", **keys))
    want = model.target.want
    assert (want.layers, want.attentions, want.projections) == ((1,), (2,), (2,))
    assert model.target.weights == {
        "mlm": 0.5,
        "mlm/hidden": 5.0,
        "mlm/attention": 0.5,
        "mlm/relations": 0.5,
        "nsp": 1.0,
    }
    batch = text_batch((6, 3))
    units = {name: int(count) for name, count in model.target.units(batch).items()}
    assert units == {"mlm": 3, "mlm/hidden": 9, "mlm/attention": 9, "mlm/relations": 9, "nsp": 2}
    helpers = {n for n, _ in model.named_parameters()} - without_helpers(
        dict(model.named_parameters())
    ).keys()
    assert helpers == {"target.mlm.features.hidden.projections.0.weight"}


def test_without_a_teacher_nothing_is_asked_of_it() -> None:
    model = model_of(data_of("bert/tiny", "mlm", hidden={"layers": {1: 1}}))
    batch = text_batch((6, 3))
    assert set(model(batch).losses) == {"mlm", "nsp"}
    assert TEACHING not in batch.extras


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give either teacher"),
        ({"teacher": "a", "stored": "b"}, "give either teacher"),
        ({"teacher": "a", "ratio": 0}, "ratio: must be > 0"),
        ({"teacher": "a", "inner": "contrast"}, "plain cross entropy, but is `contrast`"),
        ({"teacher": "a", "inner": {"name": "distill", "teacher": "b"}}, "plain cross entropy"),
        ({"teacher": "a", "divergence": "kl"}, "there is no divergence `kl`"),
        ({"stored": "a", "divergence": "mse"}, "divergence=mse needs logits"),
        ({"stored": "a", "hidden": {"layers": {1: 1}}}, "hidden compares layers"),
    ],
)
def test_impossible_keys_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(TARGETS.config_class("distill"), {"name": "distill", **keys})


def built(label: str, **keys: Any) -> Target:
    config = decode(TARGETS.config_class("distill"), {"teacher": "a", "name": "distill", **keys})
    return TARGETS.build(config, Sizes(8, 8, 20), label)


def test_tags_are_learned_where_words_begin() -> None:
    target = built("tag", inner={"name": "tag", "classes": 4, "dropout": 0}, ratio=1.0)
    randomise(target)
    layout = layout_of((5, 2))
    labels = Labels(torch.tensor([1, 3, IGNORE, 0]), torch.tensor([0, 2, 4, 5]))
    batch = Batch({"src": Stream({}, layout)}, {"tag": labels})
    out = ModelOutput(Hidden(torch.randn(2, 5, 8), layout), {})
    theirs = torch.randn(4, 4)
    loss = target(out, taught(batch, "tag", theirs)).losses["tag"]
    kept = labels.values != IGNORE
    logits = target.logits(out, batch)[kept]
    expected = divergence_of(logits, theirs[kept], divergence("fkl")).sum()
    torch.testing.assert_close(loss.total, expected)
    assert int(loss.count) == int(target.units(batch)) == 3


def test_spans_are_learned_where_there_is_text() -> None:
    target = built("span", ratio=1.0, temperature=0.5)
    randomise(target)
    layout = layout_of((5, 2))
    batch = Batch({"src": Stream({}, layout)}, {"span": Labels(torch.tensor([[1, 3], [0, 1]]))})
    out = ModelOutput(Hidden(torch.randn(2, 5, 8), layout), {})
    theirs = torch.randn(4, 5).masked_fill(~layout.valid.repeat_interleave(2, 0), NEVER)
    loss = target(out, taught(batch, "span", theirs)).losses["span"]
    logits, kl = 2 * target.logits(out, batch), divergence("fkl")
    rows = [(0, 5), (1, 5), (2, 2), (3, 2)]
    expected = [
        divergence_of(logits[r : r + 1, :n], 2 * theirs[r : r + 1, :n], kl) for r, n in rows
    ]
    torch.testing.assert_close(loss.total, torch.cat(expected).sum())


def test_the_inner_target_is_the_one_that_it_is_called_like() -> None:
    assert isinstance(built("lm"), LmTarget)
    assert isinstance(built("words", inner="mlm"), MlmTarget)
    for label, message in (
        ("words", "no target is called `words`"),
        ("classify", "`classify` has keys without a default"),
        ("contrast", "plain cross entropy, not `contrast`"),
    ):
        with pytest.raises(ConfigError, match=message):
            built(label)
