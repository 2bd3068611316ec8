"""A frozen autoencoder that turns images into codes and codes into images."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tencentpretrain.annotators.vqgan import LABEL, read_vqgan
from tencentpretrain.data.checksum import file_checksum
from tencentpretrain.data.media.transforms import ImageTransformConfig, Triple
from tencentpretrain.errors import CheckpointError, DataError
from tencentpretrain.layers.convolution import no_cells
from tencentpretrain.model import Model
from tencentpretrain.targets.reconstruct import ReconstructTarget
from tencentpretrain.tools.saved_model import read_model
from tencentpretrain.train.manifest import MANIFEST
from tencentpretrain.train.precision import autocast
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tencentpretrain.types import SRC, Batch, Layout, ModelOutput, Stream

log = logging.getLogger("tencentpretrain")


@dataclass(frozen=True)
class Normalisation:
    """What was subtracted from red, green and blue between 0 and 1, and then divided by."""

    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)

    @classmethod
    def of(cls, transform: ImageTransformConfig) -> Normalisation:
        """That of a transform."""
        return cls(transform.mean, transform.std)

    def undo(self, pixels: Tensor) -> Tensor:
        """Red, green and blue between 0 and 1, as far as they were, of `pixels` [B, 3, H, W]."""
        return pixels * self._column(self.std, pixels) + self._column(self.mean, pixels)

    def apply(self, colours: Tensor) -> Tensor:
        """Pixels of colours between 0 and 1."""
        return (colours - self._column(self.mean, colours)) / self._column(self.std, colours)

    def _column(self, values: Triple, like: Tensor) -> Tensor:
        # Three numbers, copied without waiting for the device.
        return (
            torch.tensor(values, dtype=torch.float32)
            .to(like.device, non_blocking=True)
            .view(3, 1, 1)
        )


PUBLISHED: Final = Normalisation()
"""Pixels between -1 and 1, which published autoencoders read and make."""


class ImageCodec:
    """Reads and makes images in codes.

    Args:
        model: With a target `label` that makes images; it is frozen here.
        label: Name of that target.
        normalisation: Of the pixels that it reads and makes.
        path: Where it is from, for messages.
        fingerprint: Checksum over all of its weights.
        size: Height and width of the images that it was trained on; None where nobody knows.
        dtype: Of matrix products.
    """

    def __init__(
        self,
        model: Model,
        label: str,
        normalisation: Normalisation,
        path: Path,
        fingerprint: str,
        size: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        target = model.target[label]
        assert isinstance(target, ReconstructTarget)
        self._target = target
        self.normalisation, self.size = normalisation, size
        self.path, self.fingerprint = path, fingerprint
        self._dtype = dtype

    @classmethod
    def open(
        cls, path: Path, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> ImageCodec:
        """The autoencoder of a run or of one of its checkpoints, or published weights in a file.

        Raises:
            CheckpointError: if there is none.
        """
        if path.is_file():
            _, model = read_vqgan(path, device)
            return cls(model, LABEL, PUBLISHED, path, file_checksum(path), dtype=dtype)
        saved = read_model(open_checkpoint(path), device)
        label, _ = saved.target(ReconstructTarget, "make images of codes")
        place = saved.checkpoint.path
        transform = getattr(saved.config.objective, "transform", None)
        if not isinstance(transform, ImageTransformConfig):
            raise CheckpointError(
                f"`{place}` does not say which pixels its model reads; give a run that was trained "
                "on images"
            )
        log.info(f"image codes are those of checkpoint {place}")
        return cls(
            saved.model,
            label,
            Normalisation.of(transform),
            place,
            file_checksum(place / MANIFEST),
            transform.size,
            dtype,
        )

    @property
    def count(self) -> int:
        """Number of different codes."""
        return self._target.config.codes

    @property
    def factor(self) -> int:
        """Pixels of an image that a code stands for, along each side."""
        return self._target.config.factor

    @torch.no_grad()
    def encode(self, colours: Tensor) -> Tensor:
        """Codes [B, N] of images [B, 3, H, W] in colours between 0 and 1, row by row.

        Raises:
            DataError: if an image is no whole number of cells.
        """
        misfit = no_cells(colours, self.factor)
        if misfit:
            raise DataError(f"{misfit}, for the autoencoder `{self.path}`")
        pixels = self.normalisation.apply(colours.float())
        valid = torch.ones(len(pixels), 1, dtype=torch.bool, device=pixels.device)
        stream = Stream({"pixels": pixels}, Layout(valid))
        with autocast(self._dtype, pixels.device):
            out = ModelOutput(self.model.read(stream), {})
            return self._target.codes(out, Batch({SRC: stream}))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Colours between 0 and 1 [B, 3, H, W] of the codes [B, N] of square images, in fp32.

        Raises:
            DataError: if the codes are not those of a square.
        """
        side = math.isqrt(codes.shape[1])
        if side * side != codes.shape[1]:
            raise DataError(f"codes must be those of a square image, but are {codes.shape[1]}")
        with autocast(self._dtype, codes.device):
            pixels = self._target.make(self._target.codebook(codes), side, side)
        return self.normalisation.undo(pixels.float()).clamp(0.0, 1.0)
