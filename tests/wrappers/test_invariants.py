"""What the method promises: the invariants of LoRA, MoSLoRA and DoRA, one test for each."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.layers.dropout import dropout
from tencentpretrain.wrappers.adapter import AdaptedLinear, merge, unmerge
from tencentpretrain.wrappers.factors import mixed_down, updated
from tests.helpers.adapters import Layers, adapted, factors, same, train, trained, update_of

MIXERS = ("identity", "kaiming", "kaiming_unit", "orthogonal", "normal", "butterfly")
KINDS: list[dict[str, Any]] = [
    {"name": "lora"},
    {"name": "lora", "rank_stabilised": True, "a_init": "gaussian"},
    {"name": "dora"},
    *({"name": "moslora", "mixer": mixer} for mixer in ("none", *MIXERS)),
]


def states(rows: int = 7, seed: int = 3) -> Tensor:
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_update_starts_as_nothing_bit_for_bit(kind: dict[str, Any]) -> None:
    assert torch.equal(adapted(**kind)(states()), Layers()(states()))


@pytest.mark.parametrize("mixer", ["none", *MIXERS])
def test_a_is_the_same_with_and_without_a_mixer(mixer: str) -> None:
    plain, mixed = adapted("lora", seed=3), adapted("moslora", seed=3, mixer=mixer)
    assert same(factors(plain, "lora_a"), factors(mixed, "lora_a"))
    assert not same(factors(plain, "lora_a"), factors(adapted("lora", seed=4), "lora_a"))


def test_drawing_factors_shifts_no_other_chance() -> None:
    torch.manual_seed(9)
    before = torch.rand(3)
    layers = Layers()
    torch.manual_seed(9)
    layers.adapt(update_of("moslora", mixer="orthogonal"))
    assert torch.equal(torch.rand(3), before)


def test_a_fixed_identity_mixer_is_lora_at_every_step() -> None:
    plain = adapted("lora")
    mixed = adapted("moslora", mixer="identity", mixer_trained=False)
    for _ in zip(train(plain, 5), train(mixed, 5), strict=True):
        for name in ("lora_a", "lora_b"):
            assert same(factors(plain, name), factors(mixed, name))
        assert torch.equal(plain(states()), mixed(states()))


def test_a_trained_identity_mixer_leaves_lora_after_two_steps() -> None:
    plain, mixed = adapted("lora"), adapted("moslora", mixer="identity")
    start = factors(mixed, "lora_mixer")
    for step, _ in zip(train(plain, 3), train(mixed, 3), strict=True):
        is_lora = [same(factors(plain, n), factors(mixed, n)) for n in ("lora_a", "lora_b")]
        assert is_lora == [step < 3] * 2
        assert same(factors(mixed, "lora_mixer"), start) == (step == 1)


@pytest.mark.parametrize("mixer", ["none", *MIXERS])
def test_only_b_has_a_gradient_at_first(mixer: str) -> None:
    model = adapted("moslora", mixer=mixer, mixer_trained=True)
    model(states()).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith(("weight", "bias")):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) == name.endswith("lora_b")


def test_a_mixer_of_zeros_never_learns() -> None:
    model = adapted("moslora", mixer="zeros", allow_dead_init=True)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained(model, 10)
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_merged_equals_unmerged(kind: dict[str, Any]) -> None:
    model = trained(adapted(**kind)).eval()
    weights = factors(model, "weight")
    before = model(states())
    assert (before - Layers()(states())).abs().max() > 1e-3
    merge(model)
    assert (model(states()) - before).abs().max() <= 1e-6
    assert same(factors(model, "weight"), weights)
    unmerge(model)
    assert torch.equal(model(states()), before)


@pytest.mark.parametrize("name", ["lora", "moslora", "dora"])
def test_what_is_merged_is_not_saved_and_stays_merged(name: str) -> None:
    model = trained(adapted(name)).eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    merge(model)
    answer, after = model(states()), model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], t) for n, t in after.items())
    assert torch.equal(model(states()), answer)
    # Whoever loads it computes the same, merged or not.
    other = adapted(name, seed=8).eval()
    other.load_state_dict(after)
    assert (other(states()) - answer).abs().max() <= 1e-6
    merge(other)
    assert torch.equal(other(states()), answer)


def test_dropout_is_of_what_the_update_reads_alone_and_once() -> None:
    update = update_of("moslora", rank=4, dropout=0.5)
    layer = AdaptedLinear(torch.nn.Linear(12, 10), update, 0, "x")
    with torch.no_grad():
        layer.lora_b.normal_()
    assert layer.lora_mixer is not None
    x = states()
    torch.manual_seed(4)
    found = layer(x)
    torch.manual_seed(4)
    read = dropout(x, 0.5, True)
    a, w, b = layer.lora_a, layer.lora_mixer, layer.lora_b
    expected = x @ layer.weight.T + layer.bias + layer.update.scale * read @ a.T @ w.T @ b.T
    torch.testing.assert_close(found, expected)


def test_training_drops_what_is_merged() -> None:
    model = trained(adapted("moslora")).eval()
    merge(model)
    model.train()
    model(states()).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora" in n)
    expected = model.eval()(states())
    trained(model.train(), 1)
    assert not torch.equal(model.eval()(states()), expected)


@pytest.mark.parametrize("mixer", MIXERS)
def test_folding_the_mixer_into_a_gives_lora(mixer: str) -> None:
    mixed = trained(adapted("moslora", mixer=mixer)).eval()
    plain = adapted("lora").eval()
    with torch.no_grad():
        for one, other in zip(mixed.children(), plain.children(), strict=True):
            assert isinstance(one, AdaptedLinear)
            assert isinstance(other, AdaptedLinear)
            other.lora_a.copy_(mixed_down(one.lora_a, one.lora_mixer))
            other.lora_b.copy_(one.lora_b)
    assert (mixed(states()) - plain(states())).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "extra"), [("lora", lambda o, r: 0), ("moslora", lambda o, r: r * r), ("dora", max)]
)
def test_count_of_what_trains(name: str, extra: Any) -> None:
    model = adapted(name, rank=3)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == sum(3 * (i + o) + extra(o, 3) for i, o in ((12, 14), (14, 10)))


def test_a_fixed_butterfly_is_two_subspaces() -> None:
    model = trained(adapted("moslora", rank=6, mixer="butterfly"), 4)
    layer = model.first
    assert isinstance(layer, AdaptedLinear)
    assert layer.lora_mixer is not None
    assert not layer.lora_mixer.requires_grad
    a, b = layer.lora_a.detach(), layer.lora_b.detach()
    expected = layer.update.scale * (b[:, :3] + b[:, 3:]) @ (a[:3] + a[3:])
    found = updated(torch.zeros(14, 12), a, b, layer.update.scale, layer.lora_mixer.detach())
    torch.testing.assert_close(found, expected)
    assert int(torch.linalg.matrix_rank(found, rtol=1e-5)) <= 3


def mixer_of(name: str, rank: int) -> Tensor:
    layer = adapted("moslora", rank=rank, mixer=name).first
    assert isinstance(layer, AdaptedLinear)
    assert layer.lora_mixer is not None
    return layer.lora_mixer.detach()


def test_how_mixers_start() -> None:
    mixer = mixer_of("orthogonal", 8)
    torch.testing.assert_close(mixer.T @ mixer, torch.eye(8), atol=1e-6, rtol=0)
    for name, variance in (("kaiming", 1 / 3 / 128), ("kaiming_unit", 1 / 128), ("normal", 1.0)):
        mixer = mixer_of(name, 128)
        assert abs(float(mixer.var()) / variance - 1) < 0.1
        if name == "kaiming":
            assert float(mixer.abs().max()) <= 1 / math.sqrt(128)
    assert torch.equal(mixer_of("identity", 5), torch.eye(5))
    both = factors(adapted("moslora", rank=4), "lora_mixer")
    assert not torch.equal(both["first.lora_mixer"], both["second.lora_mixer"])


def test_how_a_starts() -> None:
    uniform = factors(adapted("lora", rank=64), "lora_a")["first.lora_a"]
    assert 0.9 < float(uniform.abs().max()) * math.sqrt(12) <= 1
    normal = factors(adapted("lora", rank=64, a_init="gaussian"), "lora_a")["first.lora_a"]
    assert abs(float(normal.std()) * 64 - 1) < 0.1


@pytest.mark.parametrize("mixer", ["none", "kaiming"])
def test_gradients_in_closed_form(mixer: str) -> None:
    model = trained(adapted("moslora", mixer=mixer)).double()
    layer, x = model.second, torch.randn(9, 14, dtype=torch.float64)
    assert isinstance(layer, AdaptedLinear)
    g = torch.randn(9, 10, dtype=torch.float64)
    model.zero_grad()
    layer(x).backward(g)
    a, b, s = layer.lora_a.detach(), layer.lora_b.detach(), layer.update.scale
    w = torch.eye(4).double() if layer.lora_mixer is None else layer.lora_mixer.detach()
    h = x @ a.T
    expected = {
        "lora_b": s * g.T @ (h @ w.T),
        "lora_mixer": s * (g @ b).T @ h,
        "lora_a": s * (g @ b @ w).T @ x,
    }
    for name, parameter in layer.named_parameters():
        if name != "weight":
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", ["lora", "moslora", "dora"])
def test_dropout_is_for_training_only(name: str) -> None:
    model = trained(adapted(name, dropout=0.5))
    assert not torch.equal(model(states()), model(states()))
    model.eval()
    assert torch.equal(model(states()), model(states()))
    model.train()
    assert not torch.equal(model(states()), model(states()))


def test_the_norm_that_dora_divides_by_is_a_constant() -> None:
    layer = AdaptedLinear(torch.nn.Linear(12, 10), update_of("dora", rank=2, dropout=0.0), 0, "x")
    with torch.no_grad():
        layer.lora_b.normal_()
        layer.lora_magnitude.mul_(1.5)
    x, g = states(), torch.randn(7, 10)
    layer(x).backward(g)
    weight = (layer.weight + layer.update.scale * layer.lora_b @ layer.lora_a).detach()
    factor = layer.lora_magnitude.detach() / weight.norm(dim=1)
    grad = g.T @ x * factor[:, None]  # equation 6 without the projection, as section 4.3 has it
    torch.testing.assert_close(layer.lora_b.grad, layer.update.scale * grad @ layer.lora_a.T)
    torch.testing.assert_close(
        layer.lora_magnitude.grad, (g * (x @ weight.T)).sum(0) / weight.norm(dim=1)
    )


def test_the_rate_of_the_mixer_is_its_own() -> None:
    slow, fast = (trained(adapted("moslora", mixer_lr_scale=scale), 2) for scale in (0.1, 1.0))
    start = factors(adapted("moslora"), "lora_mixer")
    moved = [
        max(float((m - start[n]).abs().max()) for n, m in factors(model, "lora_mixer").items())
        for model in (slow, fast)
    ]
    assert moved[0] == pytest.approx(moved[1] / 10, rel=1e-3)
    assert same(factors(slow, "lora_b"), factors(fast, "lora_b"))
