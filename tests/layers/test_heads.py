import pytest
import torch

from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.padding import pad
from tests.helpers.models import layout_of

ROWS = [(4, 2, 3), (4, 4, 4), (1, 4)]


@pytest.mark.parametrize("lengths", ROWS)
def test_splitting_is_padding_and_reordering(lengths: tuple[int, ...]) -> None:
    layout = layout_of(lengths)
    states = torch.randn(sum(lengths), 6)
    heads = HeadGrid(layout, 3).split(states)
    expected = pad(states, layout).unflatten(-1, (3, 2)).transpose(1, 2)
    assert heads.shape == (len(lengths), 3, 4, 2)
    valid = layout.valid[:, None, :, None].expand_as(heads)
    assert torch.equal(heads[valid], expected[valid])
    assert torch.equal(HeadGrid(layout, 3).merge(heads), states)


@pytest.mark.parametrize("lengths", ROWS)
def test_gradients_are_derivatives(lengths: tuple[int, ...]) -> None:
    layout = layout_of(lengths)
    grid = HeadGrid(layout, 2)
    valid = layout.valid[:, None, :, None]
    states = torch.randn(sum(lengths), 4, dtype=torch.float64, requires_grad=True)
    heads = torch.randn(len(lengths), 2, 4, 2, dtype=torch.float64, requires_grad=True)
    # What stands at padding is never read.
    assert torch.autograd.gradcheck(lambda rows: grid.split(rows) * valid, (states,))
    assert torch.autograd.gradcheck(grid.merge, (heads,))
