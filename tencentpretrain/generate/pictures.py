"""Pictures for captions: codes that a model writes behind them, made into images.

Shapes: N codes of an image, R prompts, M pictures of each.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tencentpretrain.annotators.image_codec import ImageCodec
from tencentpretrain.data.objectives.dalle import DalleObjective
from tencentpretrain.data.objectives.image_text import IMAGE
from tencentpretrain.errors import CheckpointError, DataError
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.engine import Engine
from tencentpretrain.generate.frame import caption_edges
from tencentpretrain.generate.rows import Ids, RowOptions
from tencentpretrain.generate.written import Written
from tencentpretrain.model import Model
from tencentpretrain.tokenizers.base import Tokenizer

GAP: Final = 2
"""Pixels between the pictures of a grid."""
WHITE: Final = 255


class Painter:
    """A model that writes the codes of images, and what makes pictures of them.

    Args:
        model: With a target `image`, on its device.
        tokenizer: Of captions.
        objective: How rows were made in training.
        codec: Makes pictures.
        dtype: Of matrix products.

    Raises:
        CheckpointError: if the autoencoder has other codes than the model.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        objective: DalleObjective.Config,
        codec: ImageCodec,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.tokenizer = tokenizer
        self.codec = codec
        self._first, self._most = tokenizer.vocab_size, objective.first_position
        self._count = objective.side**2
        self._before, self._behind = caption_edges(tokenizer)
        options = RowOptions(
            vocabulary=self._first + codec.count,
            first=self._first,
            first_position=objective.first_position if objective.aligned else None,
            has_prefix=not objective.supervise_text,
            segment=1,
        )
        self._engine = Engine(model.eval(), options=options, dtype=dtype, target=IMAGE)
        self._check_codec(model, objective)

    def _check_codec(self, model: Model, objective: DalleObjective.Config) -> None:
        codec = self.codec
        rows, side = model.target[IMAGE].get_parameter("output.weight").shape[0], objective.side
        if rows != self._first + codec.count or objective.cell_size != codec.factor:
            raise CheckpointError(
                f"the model writes {rows - self._first} codes, {side} x {side} for an image of "
                f"{objective.transform.size} pixels, but the autoencoder `{codec.path}` has "
                f"{codec.count}, each of {codec.factor} pixels; give the one of training as codes"
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The rows of captions, as `codes` takes them."""
        rows = self.tokenizer.encode_batch(texts)
        return [[*self._before, *ids, *self._behind] for ids in rows]

    def check(self, rows: Sequence[Ids], numbers: Iterable[int]) -> None:
        """Refuse captions that the model cannot read.

        Raises:
            DataError: naming one by its number.
        """
        for row, number in zip(rows, numbers, strict=True):
            if len(row) > self._most:
                raise DataError(
                    f"prompt {number + 1} has {len(row):,} tokens with special ones, but captions "
                    f"were at most {self._most:,} in training; shorten it"
                )

    def codes(self, rows: Sequence[Ids], decoding: Decoding, numbers: Sequence[int]) -> Tensor:
        """Codes [B, N] behind captions; what is drawn depends on the seed and the own number."""
        written = [Written(self._count) for _ in rows]
        self._engine.write(rows, written, decoding, numbers)
        return torch.tensor([row.ids for row in written]) - self._first

    def pictures(self, codes: Tensor) -> np.ndarray:
        """Pixels [B, H, W, 3] in 8 bits of codes [B, N]."""
        device = next(self.codec.model.parameters()).device
        colours = self.codec.decode(codes.to(device)).permute(0, 2, 3, 1)
        pixels: np.ndarray = (colours * 255).round().to(torch.uint8).cpu().numpy()
        return pixels


def grid_of(pictures: np.ndarray, columns: int) -> bytes:
    """A PNG file of `pictures` [R * M, H, W, 3], M = `columns` in each line, with gaps between."""
    count, height, width = pictures.shape[:3]
    shape = (-(-count // columns)) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3
    grid = np.full(shape, WHITE, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        grid[top : top + height, left : left + width] = picture
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
