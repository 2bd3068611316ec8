from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.model import ModelConfig
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Target, Targets
from tencentpretrain.targets.classify import pool
from tencentpretrain.targets.mlm import MlmTarget
from tencentpretrain.types import IGNORE, Batch, Hidden, Labels, ModelOutput, Stream, Want
from tests.helpers.models import layout_of, model_config, model_data, randomise

LENGTHS = (6, 2, 4)
SIZES = Sizes(hidden=8, embedding=4, vocabulary=20)


def target_of(name: str, label: str | None = None, **keys: Any) -> Target:
    config = decode(TARGETS.config_class(name), {"name": name} | keys)
    target = TARGETS.build(config, SIZES, label or name)
    randomise(target)
    return target.eval()


def output_of() -> ModelOutput:
    layout = layout_of(LENGTHS)
    states = (torch.randn(3, 6, 8) * layout.valid[..., None]).requires_grad_()
    return ModelOutput(Hidden(states, layout), {})


def batch_of(**labels: Labels) -> Batch:
    return Batch({"src": Stream({}, layout_of(LENGTHS))}, labels)


def test_d15_pooling_reads_valid_positions_only() -> None:
    hidden = output_of().hidden
    states, valid = hidden.states, hidden.layout.valid
    states = torch.where(valid[..., None], states, 1e3)
    hidden = Hidden(states, hidden.layout)
    for row, length in enumerate(LENGTHS):
        real = states[row, :length]
        torch.testing.assert_close(pool(hidden, "first")[row], real[0])
        torch.testing.assert_close(pool(hidden, "last")[row], real[-1])
        torch.testing.assert_close(pool(hidden, "max")[row], real.amax(0))
        torch.testing.assert_close(pool(hidden, "mean")[row], real.mean(0))


def test_classes_may_be_given_as_probabilities() -> None:
    target, out = target_of("classify", classes=3), output_of()
    hard = batch_of(classify=Labels(torch.tensor([1, 0, 1])))
    soft = batch_of(classify=Labels(torch.eye(3)[[1, 0, 1], :2]))
    assert int(target.units(soft)) == int(target.units(hard)) == 3
    one, other = target(out, soft), target(out, hard)
    torch.testing.assert_close(one.losses["classify"].value, other.losses["classify"].value)
    assert one.metrics["classify/accuracy"].value == other.metrics["classify/accuracy"].value


def test_mean_pooling_keeps_the_type_and_is_zero_without_positions() -> None:
    hidden = Hidden(torch.ones(1, 3, 2, dtype=torch.bfloat16), layout_of((0,), 3))
    pooled = pool(hidden, "mean")
    assert pooled.dtype == torch.bfloat16
    assert float(pooled.abs().max()) == 0


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_classify_is_pooler_tanh_and_output(pooling: str) -> None:
    target, out = target_of("classify", classes=3, pooling=pooling), output_of()
    labels = torch.tensor([2, IGNORE, 0])
    batch = batch_of(classify=Labels(labels))
    pooled = torch.tanh(target.dense(pool(out.hidden, pooling)))  # type: ignore[arg-type,operator]
    logits = target.output(pooled)  # type: ignore[operator]
    torch.testing.assert_close(target.logits(out, batch), logits)
    result = target(out, batch)
    expected = F.cross_entropy(logits, labels, ignore_index=IGNORE)
    torch.testing.assert_close(result.losses["classify"].value, expected)
    assert int(result.metrics["classify/accuracy"].count) == int(target.units(batch)) == 2


def test_pair_targets_have_two_classes_and_read_their_own_labels() -> None:
    for name in ("nsp", "sop"):
        target = target_of(name)
        assert target.logits(output_of(), batch_of()).shape == (3, 2)
        result = target(output_of(), batch_of(**{name: Labels(torch.tensor([0, 1, 1]))}))
        assert list(result.losses) == [name]


def test_classification_is_dropped_out_only_while_training() -> None:
    target, out = target_of("classify", classes=3, dropout=0.5), output_of()
    assert torch.equal(target.logits(out, batch_of()), target.logits(out, batch_of()))
    target.train()
    assert not torch.equal(target.logits(out, batch_of()), target.logits(out, batch_of()))


def test_tags_are_predicted_at_the_supervised_positions() -> None:
    target, out = target_of("tag", classes=5), output_of()
    index = torch.tensor([0, 3, 6, 13])
    labels = Labels(torch.tensor([1, 4, 0, IGNORE]), index)
    everywhere = target.output(out.hidden.states.flatten(0, 1))  # type: ignore[operator]
    torch.testing.assert_close(target.logits(out, batch_of()), everywhere)
    torch.testing.assert_close(target.logits(out, batch_of(tag=labels)), everywhere[index])
    loss = target(out, batch_of(tag=labels)).losses["tag"]
    torch.testing.assert_close(
        loss.value, F.cross_entropy(everywhere[index], labels.values, ignore_index=IGNORE)
    )
    grid = torch.full((3, 6), IGNORE)
    grid.view(-1)[index] = labels.values
    torch.testing.assert_close(
        target(out, batch_of(tag=Labels(grid))).losses["tag"].value, loss.value
    )


def test_spans_are_the_mean_over_starts_and_ends_of_valid_positions() -> None:
    target, out = target_of("span"), output_of()
    labels = torch.tensor([[1, 4], [IGNORE, IGNORE], [3, 3]])
    batch = batch_of(span=Labels(labels))
    result = target(out, batch)
    scores = target.output(out.hidden.states)  # type: ignore[operator]
    losses = [
        F.cross_entropy(scores[row, : LENGTHS[row], side][None], labels[row, side][None])
        for row in (0, 2)
        for side in (0, 1)
    ]
    torch.testing.assert_close(result.losses["span"].value, torch.stack(losses).mean())
    assert int(result.losses["span"].count) == int(target.units(batch)) == 4


def test_padding_is_never_a_span_and_changes_none() -> None:
    target, out = target_of("span"), output_of()
    batch = batch_of(span=Labels(torch.tensor([[1, 4], [0, 1], [3, 3]])))
    valid = out.hidden.layout.valid
    states = torch.where(valid[..., None], out.hidden.states, 1e3 * torch.randn(3, 6, 8))
    noisy = ModelOutput(Hidden(states, out.hidden.layout), {})
    loss, expected = (target(o, batch).losses["span"].value for o in (noisy, out))
    torch.testing.assert_close(loss, expected)
    chances = target.logits(noisy, batch_of()).softmax(-1).view(3, 2, 6)
    assert chances[~valid[:, None].expand_as(chances)].eq(0).all()


@pytest.mark.parametrize("name", ["mlm", "lm"])
def test_vocabulary_targets_agree_on_grids_and_on_chosen_positions(name: str) -> None:
    target, out = target_of(name), output_of()
    index = torch.tensor([1, 2, 6, 14])
    values = torch.tensor([3, 19, 0, 7])
    grid = torch.full((3, 6), IGNORE)
    grid.view(-1)[index] = values
    results: list[tuple[Tensor, ...]] = []
    for labels in (Labels(values, index), Labels(grid)):
        batch = batch_of(**{name: labels})
        loss = target(out, batch).losses[name]
        assert int(loss.count) == int(target.units(batch)) == 4
        wanted = [out.hidden.states, *target.parameters()]
        results.append((loss.value, *torch.autograd.grad(loss.value, wanted)))
    for chosen, everywhere in zip(*results, strict=True):
        torch.testing.assert_close(chosen, everywhere)
    logits = target.logits(out, batch_of(**{name: Labels(values, index)}))
    torch.testing.assert_close(results[0][0], F.cross_entropy(logits, values))
    assert target.logits(out, batch_of()).shape == (18, 20)


def test_mlm_goes_through_the_width_of_the_embedding() -> None:
    target = target_of("mlm", activation="relu", norm_eps=0.1)
    assert isinstance(target, MlmTarget)
    out = output_of()
    states = torch.relu(target.dense(out.hidden.states.flatten(0, 1)))
    normed = F.layer_norm(states, (4,), target.norm.weight, target.norm.bias, 0.1)
    torch.testing.assert_close(target.transform(out, batch_of()), normed)
    assert target.output.weight.shape == (20, 4)


def test_only_an_lm_that_asks_for_it_has_a_bias() -> None:
    assert [name for name, _ in target_of("lm").named_parameters()] == ["output.weight"]
    assert "output.bias" in dict(target_of("lm", bias=True).named_parameters())


def test_a_target_may_have_another_name_than_its_kind() -> None:
    config = model_data("bert/tiny", {"target": {"topic": {"name": "classify", "classes": 4}}})
    del config["objective"]
    targets = Targets(decode(ModelConfig, config).target, SIZES)
    batch = batch_of(
        topic=Labels(torch.tensor([0, 1, 2])),
        nsp=Labels(torch.tensor([0, 1, 1])),
        mlm=Labels(torch.tensor([4]), torch.tensor([0])),
    )
    randomise(targets)
    result = targets(output_of(), batch)
    assert set(result.losses) == {"mlm", "nsp", "topic"}
    assert set(result.metrics) == {f"{name}/accuracy" for name in result.losses}
    units = targets.units(batch)
    assert {name: float(count) for name, count in units.items()} == {"mlm": 1, "nsp": 3, "topic": 3}


def test_weights_are_those_of_the_configs() -> None:
    targets = Targets(model_config("bert/tiny", {"target": {"nsp": {"weight": 0.5}}}).target, SIZES)
    assert targets.weights == {"mlm": 1.0, "nsp": 0.5}


def test_targets_ask_together_for_what_each_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = Targets(model_config("bert/tiny").target, SIZES)
    assert targets.want == Want()
    monkeypatch.setattr(type(targets["mlm"]), "want", Want(layers=(2,)))
    monkeypatch.setattr(type(targets["nsp"]), "want", Want(layers=(0,), attentions=(1,)))
    assert targets.want == Want((0, 2), (1,))


def test_a_weight_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"target.nsp.weight: must be > 0.0, but is 0"):
        model_config("bert/tiny", {"target": {"nsp": {"weight": 0}}})


@pytest.mark.parametrize("name", ["units", "weights", "mlm.two", "train"])
def test_names_that_are_taken_are_refused(name: str) -> None:
    config = model_data("bert/tiny")
    config["target"] = {name: {"name": "mlm"}}
    with pytest.raises(ConfigError, match=f"a target must not be called `{name}`"):
        decode(ModelConfig, config)
