import torch

from tencentpretrain.layers.padding import pad, take_rows, unpad
from tests.helpers.models import layout_of


def test_pad_and_unpad_are_inverse_and_padding_is_zero() -> None:
    layout = layout_of((4, 1, 3))
    rows = torch.randn(8, 2, 5)
    grid = pad(rows, layout)
    assert grid.shape == (3, 4, 2, 5)
    assert torch.equal(unpad(grid, layout), rows)
    assert torch.equal(grid[layout.valid], rows)
    assert float(grid[~layout.valid].abs().max()) == 0


def test_a_grid_without_padding_is_only_reshaped() -> None:
    layout = layout_of((4, 4))
    grid = torch.randn(2, 4, 3)
    assert layout.is_full
    assert unpad(grid, layout).data_ptr() == grid.data_ptr()
    assert torch.equal(pad(unpad(grid, layout), layout), grid)


def test_gradients_are_derivatives() -> None:
    layout = layout_of((3, 1, 2))
    rows = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    grid = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([4, 0, 3])
    assert torch.autograd.gradcheck(lambda value: pad(value, layout), (rows,))
    assert torch.autograd.gradcheck(lambda value: unpad(value, layout), (grid,))
    assert torch.autograd.gradcheck(lambda value: take_rows(value, index), (rows,))


def test_no_row_may_be_taken() -> None:
    rows = torch.randn(4, 2, requires_grad=True)
    take_rows(rows, torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.zeros(4, 2))
