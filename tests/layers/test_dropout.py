import pytest
import torch
from torch import Tensor

from tencentpretrain.layers.dropout import Dropout, draw_mask, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(499, 401), (200_001,)])
def test_the_rate_and_the_expectation_hold(
    rate: float, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    mask = draw_mask(torch.empty(shape, dtype=dtype), rate)
    assert mask.shape == shape
    assert mask.dtype == dtype
    scale = torch.tensor(65536 / (65536 - round(rate * 65536)), dtype=dtype)
    assert float(mask.max()) == float(scale)
    assert float((mask == 0).double().mean()) == pytest.approx(rate, abs=5e-3)
    assert float(mask.double().mean()) == pytest.approx(1, abs=2e-2 / (1 - rate))
    assert len(mask.unique()) == 2


def test_no_two_elements_share_their_draw() -> None:
    mask = draw_mask(torch.empty(100_000), 0.5) > 0
    for distance in range(1, 9):
        same = (mask[distance:] == mask[:-distance]).double().mean()
        assert float(same) == pytest.approx(0.5, abs=1e-2)


def test_the_gradient_is_masked_as_the_output() -> None:
    states = torch.randn(50, 40, requires_grad=True)
    dropped = dropout(states, 0.3, training=True)
    dropped.sum().backward()
    assert states.grad is not None
    torch.testing.assert_close(states.grad * states, dropped)
    assert torch.equal(states.grad == 0, dropped == 0)


def test_gradients_are_derivatives() -> None:
    def function(states: Tensor) -> Tensor:
        torch.manual_seed(3)
        return dropout(states, 0.4, training=True)

    states = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (states,))


def test_nothing_happens_outside_training_or_without_a_rate() -> None:
    states = torch.randn(4, 4)
    assert Dropout(0.5).eval()(states) is states
    assert Dropout(0.0).train()(states) is states
    assert not torch.equal(Dropout(0.5).train()(states), states)


def test_the_seed_of_torch_decides() -> None:
    states = torch.ones(1000)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout(states, 0.5, training=True)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    first = draw(1)
    assert not torch.equal(dropout(states, 0.5, training=True), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    states = torch.ones(64, dtype=dtype)
    assert dropout(states, 0.5, training=True).dtype == dtype


def test_nothing_is_dropped_of_nothing() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        states = torch.empty(0, 8, dtype=dtype, requires_grad=True)
        dropped = dropout(states, 0.5, training=True)
        assert dropped.shape == (0, 8)
        dropped.sum().backward()


def test_a_rate_near_one_stays_finite() -> None:
    assert bool(draw_mask(torch.empty(1000), 0.9999999).isfinite().all())
