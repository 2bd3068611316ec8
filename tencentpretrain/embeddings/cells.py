"""Cells of an image by a convolutional net (Esser et al., 2021, VQGAN)."""

from __future__ import annotations

import torch
from torch import Tensor

from tencentpretrain.config import ComponentConfig
from tencentpretrain.embeddings.base import PARTS, EmbeddingPart
from tencentpretrain.errors import DataError
from tencentpretrain.layers.convolution import ConvolutionKeys, ImageReader, no_cells, to_rows
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import Layout, Stream


@PARTS.register("cells")
class CellEmbedding(EmbeddingPart):
    """Embeds the stream's "pixels" [B, 3, H, W]; a cell is as wide as levels have halved it."""

    has_content = True

    class Config(ConvolutionKeys, ComponentConfig):
        pass

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.factor = config.factor
        self.net = ImageReader(config, sizes.embedding)

    def layout(self, stream: Stream) -> Layout:
        pixels = stream.inputs["pixels"]
        rows, height, width = pixels.shape[0], *pixels.shape[-2:]
        count = (height // self.factor) * (width // self.factor)
        return Layout(torch.ones(rows, count, dtype=torch.bool, device=pixels.device))

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        """Cells, row by row of the image.

        Raises:
            DataError: if an image is no whole number of cells.
        """
        pixels = stream.inputs["pixels"]
        misfit = no_cells(pixels, self.factor)
        if misfit:
            raise DataError(f"{misfit}; change model.objective.transform.size or the multipliers")
        return to_rows(self.net(pixels))
