"""Images made again of a few codes (van den Oord et al., 2017, VQ-VAE; Esser et al., 2021)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tencentpretrain.config import NonNegativeFloat, PositiveInt, check
from tencentpretrain.layers.codebook import Codebook, perplexity, straight_through
from tencentpretrain.layers.convolution import ConvolutionKeys, ImageMaker, to_grid, to_rows
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Target, TargetConfig
from tencentpretrain.targets.companion import Companion, Setting
from tencentpretrain.train.callbacks.average_codes import AverageCodes
from tencentpretrain.types import SRC, Batch, ModelOutput, Ratio, TargetOutput


@TARGETS.register("reconstruct")
class ReconstructTarget(Target):
    """Takes the nearest code for each cell, and makes the image of them again.

    The loss is the distance of the pixels, that of the codes to the cells (which moves the codes),
    and that of the cells to the codes (which keeps cells near them); equation 3 of VQ-VAE. It has
    neither the perceptual nor the adversarial term of VQGAN.
    """

    class Config(ConvolutionKeys, TargetConfig):
        codes: PositiveInt = 1024
        """Number K of different codes."""
        code_size: PositiveInt = 256
        """Width of the vector of a code."""
        normalise: bool = False
        """Whether codes and cells are compared in directions only, which keeps more codes in use
        (Yu et al., 2022, ViT-VQGAN, section 3.2); published VQGANs do not."""
        distance: Literal["l1", "l2"] = "l2"
        """Distance of pixels: absolute (l1) or squared (l2)."""
        codebook: NonNegativeFloat = 1.0
        """Factor of the squared distance that moves codes to cells, where `decay` is null."""
        decay: Annotated[float, Field(ge=0, lt=1)] | None = None
        """Codes are averages of the cells that took them, of which so much is left after a step, as
        0.99 (van den Oord et al., 2017, appendix A.1); null moves codes by their gradient."""
        commitment: NonNegativeFloat = 0.25
        """Factor of the squared distance that keeps cells near their codes."""

        @check("decay", "codebook")
        def _codes_move_in_one_way(self) -> str | None:
            if self.decay is None or self.codebook == 1.0:
                return None
            return (
                f"codebook={self.codebook:g} is a factor of the loss that moves codes, but with "
                "decay averages move them; leave one of the two out"
            )

    def __init__(self, config: Config, sizes: Sizes, name: str = "reconstruct") -> None:
        super().__init__(name)
        self.config = config
        self.quant_conv = nn.Conv2d(sizes.hidden, config.code_size, 1)
        self.codebook = Codebook(
            config.codes, config.code_size, is_normalised=config.normalise, decay=config.decay
        )
        self.post_quant_conv = nn.Conv2d(config.code_size, sizes.hidden, 1)
        self.net = ImageMaker(config, sizes.hidden)

    def vectors(self, out: ModelOutput, batch: Batch) -> Tensor:
        """What is replaced by codes [B, N, C], in fp32."""
        grid = to_grid(out.hidden.states, *self._cells(batch))
        return self.codebook.scaled(to_rows(self.quant_conv(grid)))

    def codes(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Codes [B, N] of the cells, row by row of the image."""
        return self.codebook.nearest(self.vectors(out, batch))

    def make(self, chosen: Tensor, height: int, width: int) -> Tensor:
        """Images [B, 3, H, W] of the vectors of codes [B, height * width, C]."""
        pixels: Tensor = self.net(self.post_quant_conv(to_grid(chosen, height, width)))
        return pixels

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        name, pixels = self.label, batch.streams[SRC].inputs["pixels"]
        vectors = self.vectors(out, batch)
        codes = self.codebook.nearest(vectors)
        chosen = self.codebook(codes)
        if self.training:
            self.codebook.count(codes)
            if self.codebook.averages is not None:
                self.codebook.averages.add(codes, vectors)
        made = self.make(straight_through(vectors, chosen), *self._cells(batch)).float()
        error = made - pixels
        distance = error.abs() if self.config.distance == "l1" else error.square()
        units = {name: self.units(batch), **self.further_units(batch)}
        totals = {name: distance.sum()}
        if self.codebook.averages is None:
            totals[f"{name}/codebook"] = (chosen - vectors.detach()).square().sum()
        totals[f"{name}/commitment"] = (vectors - chosen.detach()).square().sum()
        # It is of a micro-batch; those of several are averaged.
        surprise = Ratio(perplexity(codes, self.config.codes), units[name].new_ones(()))
        squared = Ratio(error.detach().square().sum(), units[name])
        return TargetOutput(
            {loss: Ratio(total, units[loss]) for loss, total in totals.items()},
            {f"{name}/perplexity": surprise, f"{name}/squared_error": squared},
        )

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """How near each code is to each cell [B * N, K]."""
        return self.codebook.scores(self.vectors(out, batch).flatten(0, 1))

    def units(self, batch: Batch) -> Tensor:
        """Values of all pixels."""
        pixels = batch.streams[SRC].inputs["pixels"]
        return torch.full((), pixels.numel(), dtype=torch.int64, device=pixels.device)

    def further(self) -> dict[str, float]:
        config = self.config
        losses = {f"{self.label}/commitment": config.commitment}
        if config.decay is not None:
            return losses
        return {f"{self.label}/codebook": config.codebook, **losses}

    def companion(self, setting: Setting) -> Companion | None:
        """What moves codes that are averages."""
        if self.codebook.averages is None:
            return None
        return Companion(callback=AverageCodes(self.codebook))

    def further_units(self, batch: Batch) -> dict[str, Tensor]:
        """Entries of the vectors of all cells."""
        height, width = self._cells(batch)
        rows = len(batch.streams[SRC].inputs["pixels"])
        values = rows * height * width * self.config.code_size
        count = self.units(batch).new_full((), values)
        return dict.fromkeys(self.further(), count)

    def _cells(self, batch: Batch) -> tuple[int, int]:
        """Cells of an image from top to bottom, and from left to right."""
        height, width = batch.streams[SRC].inputs["pixels"].shape[-2:]
        return height // self.config.factor, width // self.config.factor
