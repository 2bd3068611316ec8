"""Objectives whose batches are completed with the codes of images, which a frozen model knows."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from tencentpretrain.config import Config, PathLike
from tencentpretrain.data.media.transforms import ImageTransformConfig
from tencentpretrain.data.objectives.base import Objective
from tencentpretrain.train.precision import PrecisionName
from tencentpretrain.types import Batch

if TYPE_CHECKING:
    from tencentpretrain.targets.companion import Companion, Setting


class WholeImageConfig(ImageTransformConfig):
    """How decoded images become pixels; training reads whole ones, too, as far as they are square.

    The defaults are in a class, so that they stay where some keys are given.
    """

    crop: Literal["center", "random", "resized"] = "center"
    """What training cuts out: as evaluation (`center`), a place drawn after adding `padding` at all
    edges (`random`), or an area of random size and shape that is resized (`resized`)."""


class CodesConfig(Config):
    """Where the codes of images come from."""

    path: PathLike | None = None
    """Run directory or checkpoint of an autoencoder with codes, or a file of published weights in
    the layout of taming-transformers (safetensors, or torch's own)."""
    precision: PrecisionName = "fp32"
    """Type of its matrix products: fp32, in which codes are the same everywhere, bf16, or auto."""


class CodesObjective(Objective):
    """Its config has `codes`, `transform` and `side`, the cells from one edge to the other."""

    config: Any

    @property
    @abstractmethod
    def first_code(self) -> int:
        """Entry of the vocabulary that stands for code 0."""

    @abstractmethod
    def images(self, batch: Batch) -> Tensor:
        """Images [B, 3, H, W] of `batch`."""

    @abstractmethod
    def with_codes(self, batch: Batch, codes: Tensor) -> Batch:
        """`batch` with the `codes` [B, N] of its images."""

    def companion(self, setting: Setting) -> Companion:
        """The autoencoder.

        Raises:
            UserError: if there is none, or it does not fit the model.
        """
        # It reads runs, and so imports what imports objectives.
        from tencentpretrain.annotators.image_codes import ImageCodes
        from tencentpretrain.targets.companion import Companion

        annotator = ImageCodes.of(self, setting)
        return Companion(annotator, fingerprints={"image codes": annotator.codec.fingerprint})
