import math

import pytest
import torch
from torch import Tensor

from tencentpretrain.distill import akl
from tencentpretrain.distill.akl import Flags, HeadSearch, top
from tencentpretrain.distill.divergences import divergence_of
from tencentpretrain.distill.outcomes import Normalised, Outcomes
from tests.helpers.distill import divergence, logits_of

RULES = ("official", "cover")


def outcomes_of(teacher: Tensor, student: Tensor) -> Outcomes:
    return Outcomes.of_logits(teacher, student)


def of_logs(logs: Tensor) -> Normalised:
    return Normalised(logs, logs.exp(), logs.new_zeros(len(logs), 1))


def log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def sorted_head(p: Tensor, mass: float, rule: str) -> Tensor:
    """Flags [N, V] of the head by sorting everything, as the specification says it."""
    values, order = torch.sort(p, stable=True, dim=-1, descending=True)
    sums = values.cumsum(-1)
    tail = sums > mass if rule == "official" else sums - values >= mass
    tail[:, 0] = False
    return torch.zeros_like(tail).scatter(1, order, ~tail)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mu", [0.1, 0.5, 0.9])
def test_weights_are_shares_of_the_total_gap(mu: float, rule: str) -> None:
    outcomes = outcomes_of(logits_of(50, 60), logits_of(50, 60))
    total = (outcomes.teacher - outcomes.student).abs().sum(-1)
    head = sorted_head(outcomes.teacher, mu, rule)
    gap = ((outcomes.teacher - outcomes.student).abs() * head).sum(-1)
    details = divergence("akl", mu=mu, head_rule=rule).measure(outcomes).details
    torch.testing.assert_close(details["head_gap"], gap)
    torch.testing.assert_close(details["head_size"], head.sum(-1).double())
    torch.testing.assert_close(details["head_gap"] + details["tail_gap"], total)
    torch.testing.assert_close(details["head_weight"], gap / total)
    assert float(details["head_weight"].min()) >= 0
    assert float(details["head_weight"].max()) <= 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sharpness", [0.0, 3.0])
def test_a_head_that_goes_beyond_what_is_looked_at_first_is_found(
    sharpness: float, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(akl, "FIRST", 4)
    teacher = torch.randn(6, 300, dtype=torch.float64) * (sharpness + 1e-3)
    outcomes = outcomes_of(teacher, logits_of(6, 300))
    found = HeadSearch(outcomes.teacher, outcomes.student, 0.9, rule).finish()  # type: ignore[arg-type]
    flags = sorted_head(outcomes.teacher, 0.9, rule)
    assert found.size.tolist() == flags.sum(-1).tolist()
    gaps = (outcomes.teacher - outcomes.student).abs() * flags
    torch.testing.assert_close(found.gap, gaps.sum(-1))


@pytest.mark.parametrize("entries", [40, 511, 512, 1000, 1003])
@pytest.mark.parametrize("count", [1, 8, 32])
def test_the_greatest_are_found_in_groups(count: int, entries: int) -> None:
    values = torch.randn(5, entries)
    # A peak in one group, and a row that has but two values.
    values[1, 16:48] += 9
    values[2] = (torch.arange(entries) % 3 == 0).float()
    found, places = top(values, count)
    assert torch.equal(found, values.topk(count).values)
    assert torch.equal(values.gather(1, places), found)
    assert all(len(set(row)) == count for row in places.tolist())


def test_flags_arrive_as_numbers_of_rows() -> None:
    assert Flags(torch.tensor([True, False, True])).rows().tolist() == [0, 2]
    assert Flags(torch.zeros(3, dtype=torch.bool)).rows().tolist() == []


def test_the_published_example_of_the_two_rules() -> None:
    teacher, student = log(0.4, 0.3, 0.2, 0.1), log(0.1, 0.2, 0.3, 0.4)
    for rule, size, gaps in (("official", 1, (0.3, 0.5)), ("cover", 2, (0.4, 0.4))):
        chosen = divergence("akl", head_rule=rule)
        details = chosen.measure(outcomes_of(teacher, student)).details
        assert float(details["head_size"]) == size
        assert float(details["head_gap"]) == pytest.approx(gaps[0])
        assert float(details["tail_gap"]) == pytest.approx(gaps[1])
        assert float(details["head_weight"]) == pytest.approx(gaps[0] / sum(gaps))


@pytest.mark.parametrize(("rule", "mu"), [("official", 0.5), ("cover", 0.45)])
def test_without_a_gap_in_the_head_it_is_the_reverse_divergence(rule: str, mu: float) -> None:
    teacher, student = log(0.5, 0.3, 0.2), log(0.5, 0.2, 0.3)
    value = divergence_of(student, teacher, divergence("akl", head_rule=rule, mu=mu))
    assert float(value) == pytest.approx(0.2 * math.log(2 / 3) + 0.3 * math.log(3 / 2), abs=1e-7)
    assert float(value) == pytest.approx(
        float(divergence_of(student, teacher, divergence("rkl"))), abs=1e-7
    )


def test_a_head_of_one_entry_never_has_more_than_half_of_the_weight() -> None:
    teacher, student = logits_of(500, 20) * 3, logits_of(500, 20)
    details = divergence("akl").measure(outcomes_of(teacher, student)).details
    alone = details["head_size"] == 1
    assert int(alone.sum()) > 100
    assert float(details["head_weight"][alone].max()) <= 0.5 + 1e-9


@pytest.mark.parametrize("rule", RULES)
def test_without_a_tail_it_is_the_forward_divergence_bit_for_bit(rule: str) -> None:
    teacher, student = logits_of(20, 5000, torch.float32), logits_of(20, 5000, torch.float32)
    results = []
    for chosen in (divergence("akl", mu=1.0, head_rule=rule), divergence("fkl")):
        leaf = student.clone().requires_grad_()
        values = divergence_of(leaf, teacher, chosen)
        results.append((values, *torch.autograd.grad(values.sum(), leaf)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_the_closed_form_and_none_flows_through_the_weights(rule: str) -> None:
    teacher, student = logits_of(6, 25), logits_of(6, 25).requires_grad_()
    chosen = divergence("akl", head_rule=rule)
    values = divergence_of(student, teacher, chosen)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    outcomes = outcomes_of(teacher, student.detach())
    weight = chosen.measure(outcomes_of(teacher, student.detach())).details["head_weight"][:, None]
    p, q = outcomes.teacher, outcomes.student
    closed = weight * (q - p) + (1 - weight) * q * ((q / p).log() - outcomes.rkl[:, None])
    torch.testing.assert_close(gradient, closed, rtol=0, atol=1e-10)

    def held(logits: Tensor) -> Tensor:
        moved = outcomes_of(teacher, logits)
        return (weight[:, 0] * moved.fkl + (1 - weight[:, 0]) * moved.rkl).sum()

    def anew(logits: Tensor) -> Tensor:
        return divergence_of(logits, teacher, chosen).sum()

    direction, step = torch.randn_like(student), 1e-6
    base, slope = student.detach(), (gradient * direction).sum()
    slopes = [
        (function(base + step * direction) - function(base - step * direction)) / (2 * step)
        for function in (held, anew)
    ]
    torch.testing.assert_close(slope, slopes[0], rtol=1e-6, atol=1e-6)
    assert abs(float(slope - slopes[1])) > 1e-3


def test_where_both_are_equal_the_weight_is_what_was_chosen() -> None:
    logits = logits_of(3, 10)
    chosen = divergence("akl", tie_break=0.25)
    details = chosen.measure(outcomes_of(logits, logits.clone())).details
    assert details["head_weight"].tolist() == [0.25] * 3


def test_the_rest_of_a_stored_teacher_is_always_tail() -> None:
    p = torch.tensor([[0.3, 0.1, 0.6]], dtype=torch.float64)
    q = torch.tensor([[0.1, 0.1, 0.8]], dtype=torch.float64)
    outcomes = Outcomes.of(of_logs(p.log()), of_logs(q.log()), has_rest=True)
    details = divergence("akl_topk").measure(outcomes).details
    assert float(details["head_size"]) == 2
    assert float(details["head_gap"]) == pytest.approx(0.2)
    assert float(details["tail_gap"]) == pytest.approx(0.2)
