import pytest
import torch

from tencentpretrain.config import ConfigError
from tencentpretrain.distill.divergences import DIVERGENCES, divergence_of
from tencentpretrain.distill.outcomes import Outcomes
from tests.helpers.distill import KEYS, divergence, logits_of, plain

EVERY = {**KEYS, "akl": {}, "akl_topk": {"head_rule": "cover", "mu": 0.4}}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", sorted(KEYS))
def test_values_and_gradients_are_those_of_the_formula(name: str, temperature: float) -> None:
    teacher, student = logits_of(7, 30), logits_of(7, 30).requires_grad_()
    values = divergence_of(student, teacher, divergence(name, **KEYS[name]), temperature)
    expected = plain(name, teacher / temperature, student / temperature)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(7, dtype=torch.float64)
    (ours,) = torch.autograd.grad((values * upstream).sum(), student)
    (theirs,) = torch.autograd.grad((expected * upstream).sum(), student)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_every_divergence_is_compared_with_its_formula() -> None:
    assert set(EVERY) == set(DIVERGENCES)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_equal_logits_have_no_loss_and_no_gradient(name: str) -> None:
    teacher = logits_of(5, 40, torch.float32)
    student = teacher.clone().requires_grad_()
    values = divergence_of(student, teacher, divergence(name, **EVERY[name]))
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert float(values.detach().abs().max()) < 1e-6
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"mse"}))
def test_constants_added_to_logits_change_nothing(name: str) -> None:
    teacher, student = logits_of(5, 40), logits_of(5, 40)
    shifts = torch.randn(2, 5, 1, dtype=torch.float64) * 10
    chosen = divergence(name, **EVERY[name])
    torch.testing.assert_close(
        divergence_of(student + shifts[0], teacher + shifts[1], chosen),
        divergence_of(student, teacher, chosen),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("name", sorted(EVERY))
def test_another_order_of_the_entries_changes_nothing(name: str) -> None:
    teacher, student = logits_of(5, 40), logits_of(5, 40)
    order, chosen = torch.randperm(40), divergence(name, **EVERY[name])
    torch.testing.assert_close(
        divergence_of(student[:, order], teacher[:, order], chosen),
        divergence_of(student, teacher, chosen),
    )


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"mse"}))
def test_what_is_impossible_for_either_model_is_left_out_for_both(name: str) -> None:
    teacher, student = logits_of(5, 40, torch.float32), logits_of(5, 40, torch.float32)
    chosen, kept = divergence(name, **EVERY[name]), torch.arange(40) >= 3
    expected = divergence_of(student[:, kept], teacher[:, kept], chosen)
    teacher[:, 0] = student[:, 1] = teacher[:, 2] = student[:, 2] = -torch.inf
    student.requires_grad_()
    values = divergence_of(student, teacher, chosen, 0.9999999)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert bool(gradient.isfinite().all())
    assert float(gradient[:, ~kept].abs().max()) == 0


@pytest.mark.parametrize("name", sorted(EVERY))
def test_unlikely_entries_neither_overflow_nor_vanish(name: str) -> None:
    teacher = torch.tensor([[300.0, 0.0, -300.0], [0.0, 0.0, 0.0]])
    student = torch.tensor([[-300.0, 0.0, 300.0], [500.0, 0.0, 0.0]], requires_grad=True)
    values = divergence_of(student, teacher, divergence(name, **EVERY[name]))
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert bool(values.isfinite().all())
    assert bool(gradient.isfinite().all())


def test_extreme_mixtures_are_the_divergences_themselves() -> None:
    teacher, student = logits_of(6, 50, torch.float32), logits_of(6, 50, torch.float32)
    for forward, name in ((1.0, "fkl"), (0.0, "rkl")):
        results = []
        for chosen in (divergence("mix", forward=forward), divergence(name)):
            leaf = student.clone().requires_grad_()
            values = divergence_of(leaf, teacher, chosen)
            results.append((values, *torch.autograd.grad(values.sum(), leaf)))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


def test_skewed_and_mixed_divergences_approach_the_plain_ones() -> None:
    teacher, student = logits_of(6, 50), logits_of(6, 50)
    forward, reverse = (divergence_of(student, teacher, divergence(n)) for n in ("fkl", "rkl"))
    for name, expected in (("skew_fkl", forward), ("skew_rkl", reverse)):
        near = divergence_of(student, teacher, divergence(name, skew=1e-9))
        torch.testing.assert_close(near, expected, rtol=1e-5, atol=1e-5)
    # beta KL(p || m) / beta is KL(p || q) as beta goes to 0, and so on (GKD, section 3).
    torch.testing.assert_close(
        divergence_of(student, teacher, divergence("jsd", beta=1e-7)) / 1e-7,
        forward,
        rtol=1e-4,
        atol=1e-4,
    )


def test_half_the_jensen_shannon_divergence_is_symmetric_and_bounded() -> None:
    teacher, student = logits_of(6, 50), logits_of(6, 50) * 20
    half = divergence("jsd")
    one, other = divergence_of(student, teacher, half), divergence_of(teacher, student, half)
    torch.testing.assert_close(one, other)
    assert float(one.max()) <= torch.tensor(2.0).log()


def test_soft_cross_entropy_has_the_entropy_of_the_teacher_beside_the_divergence() -> None:
    teacher, student = logits_of(4, 9), logits_of(4, 9)
    outcomes = Outcomes.of_logits(teacher, student)
    p = teacher.softmax(-1)
    torch.testing.assert_close(outcomes.cross_entropy, -(p * student.log_softmax(-1)).sum(-1))
    torch.testing.assert_close(outcomes.cross_entropy - outcomes.fkl, -(p * p.log()).sum(-1))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mix", {"forward": 1.5}),
        ("jsd", {"beta": 0}),
        ("skew_rkl", {"skew": 1}),
        ("akl", {"mu": 0}),
    ],
)
def test_shares_out_of_range_are_refused(name: str, keys: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(keys))):
        divergence(name, **keys)


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_large_logits_lose_no_digits_of_small_divergences(scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    teacher = torch.randn(16, 500, generator=draw) * scale
    student = teacher + 0.01 * torch.randn(16, 500, generator=draw)
    found = Outcomes.of_logits(teacher.clone(), student.clone()).fkl
    exact = Outcomes.of_logits(teacher.double(), student.double()).fkl
    torch.testing.assert_close(found, exact.float(), atol=1e-6, rtol=0)
