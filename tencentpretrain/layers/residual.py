"""How the update of half a block joins the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.layers.heads import HeadGrid


class Residual(nn.Module):
    """Adds updates [T, D] to states [T, D], maybe scaled, and in training with gaps.

    Args:
        hidden: Width D.
        rate: Dropout rate of the update.
        scale: Where given, each feature of the update has a learned factor that starts with this
            (Touvron et al., 2021, CaiT, section 2.2: LayerScale).
        depth_rate: Probability with which a row of a batch goes without the update in training
            (Huang et al., 2016, Deep networks with stochastic depth); others are scaled up.
    """

    def __init__(
        self, hidden: int, rate: float, scale: float | None = None, depth_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = Dropout(rate)
        self.depth_rate = depth_rate
        self.start = scale
        self.scale = None if scale is None else nn.Parameter(torch.empty(hidden))

    def init_weights(self, std: float) -> None:
        if self.scale is not None and self.start is not None:
            nn.init.constant_(self.scale, self.start)

    def forward(self, states: Tensor, update: Tensor, grid: HeadGrid) -> Tensor:
        """The sum; `grid` knows to which row each of the T positions belongs."""
        update = self.dropout(update)
        if self.depth_rate and self.training:
            update = update * self._factors(update, grid)
        if self.scale is None:
            return states + update
        return torch.addcmul(states, update, self.scale)

    def _factors(self, update: Tensor, grid: HeadGrid) -> Tensor:
        """One factor for all positions of a row, [T, 1]."""
        kept = 1 - self.depth_rate
        rows = torch.empty(grid.rows, dtype=update.dtype, device=update.device)
        return grid.by_row(rows.bernoulli_(kept) / kept)[:, None]

    def extra_repr(self) -> str:
        return f"depth_rate={self.depth_rate}"
