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
    assert torch.equal(grid.merge(pieces), states)


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
def test_flat_states_begin_with_the_valid_positions_and_padding_comes_back_as_zeros(
    lengths: tuple[int, ...], multiple: int
) -> None:
    layout = layout_of(lengths)
    grid = HeadGrid(layout, 1)
    hidden = torch.randn(len(lengths), 4, 2)
    rows = grid.unpad(hidden)
    assert torch.equal(rows[: layout.count], hidden[layout.valid])
    assert torch.equal(grid.pad(rows), hidden * layout.valid[:, :, None])
    # Each position is there once, so that gathering and scattering are each other's gradient.
    assert len(rows.unique(dim=0)) == grid.count == len(rows)


@pytest.mark.parametrize(
    ("lengths", "multiple", "count"),
    [((4, 2, 3), 1, 9), ((4, 2, 3), 3, 9), ((4, 2, 3), 5, 10), ((4, 2, 3), 8, 12), ((1, 4), 3, 6)],
)
def test_padding_fills_flat_states_up_to_a_multiple_as_far_as_there_is_some(
    lengths: tuple[int, ...], multiple: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "ROW_MULTIPLE", multiple)
    assert HeadGrid(layout_of(lengths), 1).count == count


def test_a_full_grid_is_neither_copied_nor_filled() -> None:
    hidden = torch.randn(2, 3, 4)
    grid = HeadGrid(Layout.of(torch.ones(2, 3, dtype=torch.bool)), 2)
    assert grid.count == 6
    assert grid.unpad(hidden).data_ptr() == grid.pad(grid.unpad(hidden)).data_ptr()
