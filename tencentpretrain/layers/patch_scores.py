"""Scores that depend on how far a patch lies from another, down and to the right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.sizes import Patches

BESIDE = 3
"""Rows of a table that are for the class token: what it sees, what sees it, and itself."""


class PatchScores(nn.Module):
    """A learned score for each offset between two patches and head (Bao et al., 2022, BEiT).

    Args:
        patches: The grid, with a class token before it or without.
        heads: Number of heads N.

    Raises:
        ValueError: if more than a class token lies before the patches.
    """

    def __init__(self, patches: Patches, heads: int) -> None:
        super().__init__()
        if patches.before > 1:
            raise ValueError(f"scores are for at most one class token, not {patches.before}")
        self.patches = patches
        self.offsets = 2 * patches.rows - 1, 2 * patches.columns - 1
        count = self.offsets[0] * self.offsets[1]
        self.weight = nn.Parameter(torch.empty(count + BESIDE * patches.before, heads))

    def init_weights(self, std: float) -> None:
        nn.init.zeros_(self.weight)

    def index(self, device: torch.device) -> Tensor:
        """Row of the table for each pair of positions [S, S], the same for all tables of a size."""
        rows = torch.arange(self.patches.rows, device=device)
        columns = torch.arange(self.patches.columns, device=device)
        down = rows[:, None] - rows + len(rows) - 1
        right = columns[:, None] - columns + len(columns) - 1
        grid = down[:, None, :, None] * self.offsets[1] + right[None, :, None, :]
        grid = grid.reshape(self.patches.count, self.patches.count)
        if not self.patches.before:
            return grid
        index = F.pad(grid, (1, 0, 1, 0))
        first = self.offsets[0] * self.offsets[1]
        index[0, :], index[:, 0], index[0, 0] = first, first + 1, first + 2
        return index

    def forward(self, index: Tensor) -> Tensor:
        """Scores [1, N, S, S], given what `index` returns."""
        return F.embedding(index, self.weight).permute(2, 0, 1)[None]

    def resized(self, name: str, value: Tensor) -> Tensor | None:
        """A table of another grid, resized bilinearly; None if `value` is none."""
        beside = BESIDE * self.patches.before
        return resize_rows(value, beside, self.offsets, "bilinear", at_end=True)


def resize_rows(
    table: Tensor, beside: int, grid: tuple[int, int], mode: str, *, at_end: bool = False
) -> Tensor | None:
    """A table [rows, E] of a grid of another size, resized to `grid`.

    Args:
        table: The grid row by row, and `beside` rows that stay as they are.
        beside: Number of these.
        grid: Rows and columns that are wanted.
        mode: Interpolation: bilinear or bicubic.
        at_end: Whether they follow the grid instead of preceding it.

    Returns:
        The resized table; None where the grid of `table` is neither square nor shaped as `grid`, or
        could be both.
    """
    count = len(table) - beside
    if table.dim() != 2 or count < 1:
        return None
    square = round(count**0.5)
    rows = round((count * grid[0] / grid[1]) ** 0.5)
    grids = {(square, square), (rows, round(rows * grid[1] / grid[0]))}
    fitting = [old for old in grids if old[0] * old[1] == count]
    if len(fitting) != 1:
        return None
    old = fitting[0]
    first = 0 if at_end else beside
    image = table[first : first + count].float().T.reshape(1, -1, *old)
    resized = F.interpolate(image, grid, mode=mode, align_corners=False)
    rows = resized[0].flatten(1).T.to(table.dtype)
    kept = table[count:] if at_end else table[:beside]
    return torch.cat([rows, kept] if at_end else [kept, rows])
