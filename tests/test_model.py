import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tencentpretrain import model as model_module
from tencentpretrain.config import ConfigError, decode
from tencentpretrain.model import (
    InitConfig,
    Model,
    ModelConfig,
    build_model,
    init_weights,
    parameter_count,
    tie,
)
from tencentpretrain.types import Labels
from tests.helpers.models import (
    TINY,
    VOCABULARY,
    model_config,
    model_data,
    text_batch,
    tiny_model,
    total_loss,
)

WIDE = {"hidden": 128, "encoder": {"layers": 3, "heads": 2, "ffn": 256}}
"""Large enough for the standard deviation of a matrix to be measured."""


def test_a_tied_parameter_is_one_with_the_gradients_of_both_uses() -> None:
    batch = text_batch((6, 4))
    tied = tiny_model("bert/tiny").eval()
    assert tied.target["mlm"].output.weight is tied.embedding.word.weight
    loose = untied()
    loose.load_state_dict(tied.state_dict())
    total_loss(tied(batch)).backward()
    total_loss(loose(batch)).backward()
    both = loose.embedding.word.weight.grad + loose.target["mlm"].output.weight.grad
    torch.testing.assert_close(tied.embedding.word.weight.grad, both)
    assert parameter_count(loose) - parameter_count(tied) == VOCABULARY * 16


def untied() -> Model:
    data = model_data("bert/tiny", TINY) | {"ties": {}}
    return build_model(decode(ModelConfig, data), VOCABULARY).eval()


def test_ties_survive_building_on_a_device_and_moving() -> None:
    model = tiny_model("gpt2/tiny").to(torch.float64)
    assert model.target["lm"].output.weight is model.embedding.word.weight
    names = dict(model.named_parameters())
    assert "target.lm.output.weight" not in names
    assert "embedding.word.weight" in names


def test_impossible_ties_are_refused_with_the_nearest_name() -> None:
    model = tiny_model("bert/tiny")
    with pytest.raises(ConfigError, match=r"did you mean `embedding.word.weight`"):
        tie(model, {"target.mlm.output.weight": "embedding.words.weight"})
    with pytest.raises(ConfigError, match=r"one shape, but have \(50,\) and \(50, 16\)"):
        tie(model, {"target.mlm.output.bias": "embedding.word.weight"})


def test_building_is_a_function_of_the_seed_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (tiny_model("bert/tiny", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        if parameter.dim() > 1:
            assert not torch.equal(parameter, other.get_parameter(name))


def test_the_meta_device_holds_shapes_only() -> None:
    model = build_model(model_config("bert/large"), 30522, "meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["bert/tiny", "albert/base", "gpt2/tiny", "roberta/tiny"])
def test_every_parameter_is_initialised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(model: Model, config: Any, *others: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        init_weights(model, config, *others)

    monkeypatch.setattr(model_module, "init_weights", filled)
    for key, parameter in tiny_model(name).named_parameters():
        assert not bool(parameter.isnan().any()), key
        assert parameter.device.type == "cpu"


@pytest.mark.parametrize("std", [0.02, 0.1])
@pytest.mark.parametrize("name", ["bert/tiny", "albert/base", "gpt2/tiny", "roberta/tiny"])
def test_initialisation_is_as_published(name: str, std: float) -> None:
    """Gains 1, biases 0, weights N(0, std); GPT-2 divides those that add to the stream."""
    overrides = [WIDE, {"init": {"std": std}}]
    overrides += [{"embedding": {"size": 64}}] if name == "albert/base" else []
    model = build_model(model_config(name, *overrides), 500)
    outputs = ("attention.output.weight", "feed_forward.down.weight")
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1:
            expected = 1.0 if "norm" in key and key.endswith("weight") else 0.0
            assert torch.equal(parameter, torch.full_like(parameter, expected)), key
            continue
        is_scaled = name == "gpt2/tiny" and key.endswith(outputs)
        expected = std / math.sqrt(2 * 3) if is_scaled else std
        # Three standard errors of the deviation of so many values, and at least 2 %.
        slack = max(0.02, 3 / math.sqrt(2 * parameter.numel()))
        assert float(parameter.detach().std()) == pytest.approx(expected, rel=slack), key
        assert abs(float(parameter.detach().mean())) < 4 * expected / math.sqrt(parameter.numel())


def test_residual_layers_of_a_shared_block_are_scaled_by_its_uses() -> None:
    overrides = [WIDE, {"init": {"scale_residual": True}, "embedding": {"size": 64}}]
    model = build_model(model_config("albert/base", *overrides), 500)
    output = model.encoder.layers[0].feed_forward.down.weight.detach()  # type: ignore[union-attr,index]
    assert float(output.std()) == pytest.approx(0.02 / math.sqrt(6), rel=0.02)


def test_a_module_may_have_its_own_scheme() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(3))

        def init_weights(self, std: float) -> None:
            nn.init.constant_(self.weight, 10 * std)

    model = tiny_model("bert/tiny")
    model.embedding.add_module("own", Own())
    init_weights(model, model_config("bert/tiny").init)
    own = model.embedding.get_submodule("own").get_parameter("weight")
    torch.testing.assert_close(own, torch.full((3,), 0.2))


def test_the_word_table_may_be_larger_but_not_smaller_than_the_tokenizer() -> None:
    config = model_config("bert/tiny", TINY, {"vocabulary": 64})
    assert build_model(config, 50).embedding.word.weight.shape == (64, 16)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"model.vocabulary: .* 65, but is 64"):
        build_model(config, 65)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"encoder": {"heads": 3}}, r"encoder.heads must divide .*=128, but is 3"),
        (
            {"objective": {"length": 513}},
            r"at most .*position.length=512, but is 513",
        ),
        ({"target": {"sop": {}}}, r"target.sop gets no labels from objective.name=bert"),
        (
            {"target": {"mlmm": {}}},
            r"target.mlmm: .* did you mean `mlm`",
        ),
        ({"decoder": {"name": "x"}}, r"decoder.name: there is no decoder `x`"),
        ({"target_embedding": {"parts": {"word": {}}}}, "must be given together"),
        ({"hiden": 3}, r"hiden: is not a known key; did you mean `hidden`"),
        ({"encoder": {"mask": "casual"}}, r"encoder.mask: .* did you mean `causal`"),
        ({"init": {"std": 0}}, r"init.std: must be > 0"),
    ],
)
def test_contradictions_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config("bert/tiny", overrides)


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        model_config("bert/tiny", {"encoder": {"heads": 3, "drop": 0.1}, "init": {"std": -1}})
    paths = {problem.path for problem in error.value.problems}
    assert paths >= {"encoder.drop", "init.std"}
    assert "heads must divide" in str(error.value)


def test_flops_grow_with_what_is_computed() -> None:
    model = tiny_model("bert/tiny")
    batch, padded = text_batch((16, 16), ("mlm",)), text_batch((16, 8), ("mlm",))
    base, units = model.flops(batch), batch.labels["mlm"].values.numel()
    assert model.flops(text_batch((16, 16, 16, 16), ("mlm",))) == pytest.approx(2 * base, rel=0.02)
    encoder = 2 * 2 * (4 * 16 * 16 + 2 * 16 * 32) * 32 * 3
    head = sum(p.numel() for p in model.target.parameters())
    assert encoder < base - 6 * head * units < 2 * encoder
    fewer = 6 * head * (units - padded.labels["mlm"].values.numel())
    assert base - model.flops(padded) - fewer == pytest.approx(model.encoder.flops(16) * 8 * 3)


def test_a_step_lowers_the_loss_and_reaches_every_parameter() -> None:
    model, batch = tiny_model("bert/tiny", {"encoder": {"dropout": 0}}), text_batch((9, 5, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[Tensor] = []
    for _ in range(3):
        losses.append(total_loss(model(batch)))
        losses[-1].backward()
        # The bias of keys moves all scores of a query alike, and so does nothing.
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()) or name.endswith("key.bias"), name
        optimizer.step()
        optimizer.zero_grad()
    assert float(losses[2].detach()) < float(losses[0].detach())


def test_losses_are_sums_over_counts_that_add_up_over_parts_of_a_batch() -> None:
    model = tiny_model("bert/tiny").eval()
    whole = text_batch((9, 5, 7))
    output = model(whole)
    totals = {"mlm": 0.0, "nsp": 0.0}
    stream, labels = whole.streams["src"], whole.labels
    width = stream.layout.valid.shape[1]
    for row in range(3):
        part = text_batch((9, 5, 7))
        index = labels["mlm"].index
        assert index is not None
        chosen = index // width == row
        part.streams["src"].inputs = {k: v[row : row + 1] for k, v in stream.inputs.items()}
        part.streams["src"].layout = type(stream.layout).of(stream.layout.valid[row : row + 1])
        part.labels = {
            "mlm": Labels(labels["mlm"].values[chosen], index[chosen] - row * width),
            "nsp": Labels(labels["nsp"].values[row : row + 1]),
        }
        for name, ratio in model(part).losses.items():
            totals[name] += float(ratio.total.detach())
    for name, ratio in output.losses.items():
        assert float(ratio.total.detach()) == pytest.approx(totals[name], rel=1e-5)


class _Unfilled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.empty(2, 2))


def test_modules_that_nobody_fills_are_refused_and_those_of_torch_keep_their_scheme() -> None:
    model = tiny_model("bert/tiny")
    model.add_module("extra", torch.nn.Conv1d(2, 3, 3))
    with torch.no_grad():
        model.extra.weight.fill_(float("nan"))
    init_weights(model, InitConfig())
    assert torch.isfinite(model.extra.weight).all()
    model.add_module("unfilled", _Unfilled())
    with pytest.raises(TypeError, match="_Unfilled has parameters or buffers"):
        init_weights(model, InitConfig())


def test_null_unties_all_parameters() -> None:
    config = model_config("bert/tiny", {"ties": None})
    assert config.ties == {}
    assert model_config("bert/tiny").ties
