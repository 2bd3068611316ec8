"""Rows that are read from one end to the other.

Shapes: B rows, S positions, T valid positions.
"""

from __future__ import annotations

import torch

from tencentpretrain.errors import DataError
from tencentpretrain.types import Layout


def reading_orders(layout: Layout) -> tuple[Layout, Layout]:
    """Grids whose rows begin with the valid positions of `layout`: as written, and last one first.

    `pad` and `unpad` of layers/padding.py go between flat valid positions [T, D] and such a grid.
    Whatever lies beside the text of a row is thus read after it, where nobody looks any more.
    """
    valid, tokens = layout.valid, layout.tokens
    length = valid.shape[1]
    if tokens is None:
        tokens = torch.arange(valid.numel(), device=valid.device)
    row = tokens // length
    rank = valid.cumsum(1).flatten()[tokens] - 1
    counts = valid.sum(1)
    starts = torch.arange(length, device=valid.device) < counts[:, None]
    # A full grid is in order already: without tokens it is neither copied forth nor back.
    forward = layout if layout.is_full else Layout(starts, row * length + rank)
    return forward, Layout(starts, row * length + counts[row] - 1 - rank)


def refuse_packed(layout: Layout) -> None:
    """Encoders that carry something from position to position take a row for one text.

    Raises:
        DataError: if rows hold several documents that must not know of each other.
    """
    if layout.documents is not None:
        raise DataError(
            "rows hold several documents that are to be kept apart, but this encoder reads a row "
            "as one text; set model.objective.isolate_documents=false"
        )
