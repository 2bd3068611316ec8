import math

import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.train.schedule import SCHEDULES, Schedule


def schedule(name: str, steps: int = 100, **keys: object) -> Schedule:
    config = decode(SCHEDULES.config_class(name), {"name": name, **keys})
    return SCHEDULES.build(config, steps)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_factors_are_positive_and_at_most_one(name: str) -> None:
    factors = [schedule(name)(step) for step in range(100)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"constant", "tri_stage"}))
def test_warmup_rises_in_a_line_and_the_first_step_is_not_zero(name: str) -> None:
    factor = schedule(name, warmup_steps=10)
    assert [factor(step) for step in range(10)] == pytest.approx([k / 10 for k in range(1, 11)])


def test_linear_reaches_its_end_right_after_the_last_step() -> None:
    factor = schedule("linear", warmup_steps=0, final=0.2)
    assert factor(0) == 1
    assert factor(50) == pytest.approx(0.6)
    assert factor(100) == pytest.approx(0.2)


def test_cosine_is_half_a_period() -> None:
    factor = schedule("cosine", warmup_steps=0)
    assert factor(25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert factor(50) == pytest.approx(0.5)


def test_cosine_restarts_start_again_from_one() -> None:
    factor = schedule("cosine_restarts", warmup_steps=0, cycles=4)
    assert [factor(step) for step in (0, 25, 50, 75)] == [1, 1, 1, 1]
    assert factor(24) < 0.01


def test_polynomial_with_power_one_is_linear() -> None:
    polynomial, linear = schedule("polynomial"), schedule("linear")
    assert [polynomial(s) for s in range(100)] == pytest.approx([linear(s) for s in range(100)])
    assert schedule("polynomial", power=2.0, warmup_steps=0)(50) == pytest.approx(0.25)


def test_d50_inverse_sqrt_without_warmup_does_not_divide_by_zero() -> None:
    factor = schedule("inverse_sqrt", warmup_steps=0)
    assert factor(0) == 1
    assert factor(3) == pytest.approx(0.5)


def test_d50_tri_stage_has_a_plateau_and_ends_at_its_final_factor() -> None:
    factor = schedule("tri_stage", warmup_steps=10, decay_ratio=0.5, final=0.05, start=0.01)
    assert factor(0) == pytest.approx(0.01 + 0.99 / 10)
    assert [factor(step) for step in (10, 30, 50)] == [1, 1, 1]
    assert factor(100) == pytest.approx(0.05)
    assert schedule("tri_stage", warmup_steps=0)(0) == 1


def test_constant_has_no_warmup_unless_asked() -> None:
    assert schedule("constant")(0) == 1
    assert schedule("constant_warmup", warmup_ratio=0.1)(0) == pytest.approx(0.1)


def test_a_warmup_ratio_is_a_share_of_the_run() -> None:
    with pytest.raises(ConfigError, match="warmup_ratio"):
        schedule("linear", warmup_ratio=1.5)
    assert schedule("linear", steps=1000, warmup_ratio=0.25).warmup == 250
