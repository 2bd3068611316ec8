import torch
from torch import nn

from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.residual import Residual
from tests.helpers.models import layout_of

GRID = HeadGrid(layout_of((6, 4)), 1)
STATES, UPDATE = torch.randn(64, 4), torch.randn(64, 4)


def test_without_anything_it_is_a_sum() -> None:
    residual = Residual(4, 0.0)
    assert torch.equal(residual(STATES, UPDATE, GRID), STATES + UPDATE)
    assert not list(residual.parameters())


def test_updates_are_scaled_by_learned_factors() -> None:
    residual = Residual(4, 0.0, scale=0.1)
    residual.init_weights(0.02)
    assert residual.scale is not None
    assert residual.scale.tolist() == torch.full((4,), 0.1).tolist()
    with torch.no_grad():
        residual.scale.copy_(torch.arange(4.0))
    torch.testing.assert_close(residual(STATES, UPDATE, GRID), STATES + torch.arange(4.0) * UPDATE)


def test_whole_rows_go_without_the_update_and_the_mean_stays() -> None:
    residual, total = Residual(4, 0.0, depth_rate=0.4), torch.zeros(64, 4)
    torch.manual_seed(0)
    seen = set()
    for _ in range(2000):
        added = residual(STATES, UPDATE, GRID) - STATES
        factors = (added / UPDATE).round(decimals=3)
        for row in (factors[:6], factors[6:10]):
            assert bool((row == row[0, 0]).all())
        seen.add((float(factors[0, 0]) > 0, float(factors[6, 0]) > 0))
        total += added
    assert len(seen) == 4
    torch.testing.assert_close(total[:10] / 2000, UPDATE[:10], rtol=0.1, atol=0.1)
    assert not total[10:].any()


def test_rows_of_a_full_grid_are_told_apart() -> None:
    grid = HeadGrid(layout_of((3, 3)), 1)
    assert grid.by_row(torch.tensor([5.0, 7.0])).tolist() == [5.0] * 3 + [7.0] * 3
    assert GRID.by_row(torch.tensor([5.0, 7.0])).tolist() == [5.0] * 6 + [7.0] * 4 + [0.0] * 54


def test_evaluation_drops_nothing() -> None:
    residual = Residual(4, 0.5, depth_rate=0.5).eval()
    assert torch.equal(residual(STATES, UPDATE, GRID), STATES + UPDATE)
    assert isinstance(residual, nn.Module)
