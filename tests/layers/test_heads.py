import pytest
import torch

from tencentpretrain.layers import heads
from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.types import Layout
from tests.helpers.models import layout_of

ROWS = [(4, 2, 3), (4, 4, 4), (1, 4)]


@pytest.fixture(params=[1, 5, 64])
def multiple(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(heads, "ROW_MULTIPLE", request.param)
    return int(request.param)


@pytest.mark.parametrize("lengths", ROWS)
def test_splitting_is_padding_and_reordering(lengths: tuple[int, ...], multiple: int) -> None:
    layout = layout_of(lengths)
    grid = HeadGrid(layout, 3)
    states = torch.randn(grid.count, 6)
    pieces = grid.split(states)
    expected = grid.pad(states).unflatten(-1, (3, 2)).transpose(1, 2)
    assert pieces.shape == (len(lengths), 3, 4, 2)
    valid = layout.valid[:, None, :, None].expand_as(pieces)
    assert torch.equal(pieces[valid], expected[valid])
    merged = grid.merge(pieces)
    assert torch.equal(merged[: layout.count], states[: layout.count])
    assert not merged[layout.count :].any()


@pytest.mark.parametrize("lengths", ROWS)
def test_gradients_are_derivatives(lengths: tuple[int, ...], multiple: int) -> None:
    layout = layout_of(lengths)
    grid = HeadGrid(layout, 2)
    valid = layout.valid[:, None, :, None]
    states = torch.randn(grid.count, 4, dtype=torch.float64, requires_grad=True)
    pieces = torch.randn(len(lengths), 2, 4, 2, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(len(lengths), 4, 4, dtype=torch.float64, requires_grad=True)
    # What stands at padding is never read.
    assert torch.autograd.gradcheck(lambda rows: grid.split(rows) * valid, (states,))
    assert torch.autograd.gradcheck(grid.merge, (pieces,))
    assert torch.autograd.gradcheck(grid.pad, (states,))
    assert torch.autograd.gradcheck(grid.unpad, (hidden,))


@pytest.mark.parametrize("lengths", ROWS)
def test_zeros_fill_flat_states_behind_the_valid_positions(
    lengths: tuple[int, ...], multiple: int
) -> None:
    layout = layout_of(lengths)
    grid = HeadGrid(layout, 1)
    hidden = torch.randn(len(lengths), 4, 2)
    rows = grid.unpad(hidden)
    assert len(rows) == grid.count
    assert layout.is_full or grid.count % multiple == 0
    assert grid.count - layout.count < multiple
    assert torch.equal(rows[: layout.count], hidden[layout.valid])
    assert not rows[layout.count :].any()
    assert torch.equal(grid.pad(rows), hidden * layout.valid[:, :, None])


def test_nothing_comes_out_of_padding_whatever_it_holds(multiple: int) -> None:
    layout = layout_of((4, 2, 3))
    grid = HeadGrid(layout, 2)
    hidden = torch.randn(3, 4, 4)
    hidden[~layout.valid] = float("nan")
    hidden.requires_grad_()
    states = grid.pad(grid.merge(grid.split(grid.unpad(hidden))))
    (gradient,) = torch.autograd.grad(states.sum(), hidden)
    assert bool(states.isfinite().all())
    assert torch.equal(gradient, layout.valid[:, :, None].float().expand(3, 4, 4))


def test_a_full_grid_is_neither_copied_nor_filled() -> None:
    hidden = torch.randn(2, 3, 4)
    grid = HeadGrid(Layout.of(torch.ones(2, 3, dtype=torch.bool)), 2)
    assert grid.count == 6
    assert grid.unpad(hidden).data_ptr() == grid.pad(grid.unpad(hidden)).data_ptr()
