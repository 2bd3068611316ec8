"""Completes batches with the codes of their images; no part of the model that learns them."""

from __future__ import annotations

from pathlib import Path

import torch

from tencentpretrain.annotators.image_codec import ImageCodec, Normalisation
from tencentpretrain.config import ConfigError
from tencentpretrain.data.objectives.codes import CodesObjective
from tencentpretrain.errors import CheckpointError
from tencentpretrain.targets.companion import Completion, Setting
from tencentpretrain.train.precision import resolve_precision
from tencentpretrain.types import Batch


class ImageCodes(Completion):
    """An annotator: reads the images of each batch before the model does.

    Args:
        codec: The autoencoder.
        objective: What knows where pixels are in a batch, and where their codes belong.
    """

    def __init__(self, codec: ImageCodec, objective: CodesObjective) -> None:
        self.codec = codec
        self._objective = objective
        self._normalisation = Normalisation.of(objective.config.transform)

    @classmethod
    def of(cls, objective: CodesObjective, setting: Setting) -> ImageCodes:
        """The annotator for `objective`.

        Raises:
            ConfigError: if no autoencoder is named, or sizes do not fit it.
            CheckpointError: if it cannot be read, or was trained on other images.
        """
        given: Path | None = objective.config.codes.path
        if given is None:
            raise ConfigError.at(
                "model.objective.codes.path",
                "is required: the run of an autoencoder (such as model=vqvae/cifar), or published "
                "weights",
            )
        dtype = resolve_precision(objective.config.codes.precision, setting.device)
        codec = ImageCodec.open(given, setting.device, dtype)
        check_images(codec, objective)
        check_vocabulary(codec, objective, setting)
        return cls(codec, objective)

    def __call__(self, batch: Batch) -> Batch:
        """`batch` with codes; nothing of it has a gradient."""
        with torch.no_grad():
            colours = self._normalisation.undo(self._objective.images(batch))
            return self._objective.with_codes(batch, self.codec.encode(colours))


def check_images(codec: ImageCodec, objective: CodesObjective) -> None:
    """An autoencoder must know images of this size, and make as many codes of one as are read.

    Raises:
        CheckpointError: if it was trained on others.
        ConfigError: if it makes more codes of an image, or fewer.
    """
    size = objective.config.transform.size
    if codec.size not in (None, size):
        raise CheckpointError(
            f"the autoencoder `{codec.path}` was trained on images of {codec.size} x {codec.size} "
            f"pixels, but model.objective.transform.size is {size}; use that, or another one"
        )
    side, wanted = size // codec.factor, objective.config.side
    if side != wanted or size % codec.factor:
        raise ConfigError.at(
            "model.objective.codes.path",
            f"names an autoencoder with a code for each {codec.factor} x {codec.factor} pixels, "
            f"but the objective reads {wanted} x {wanted} codes of {size} x {size} pixels",
        )


def check_vocabulary(codec: ImageCodec, objective: CodesObjective, setting: Setting) -> None:
    """The model must have an output for each code.

    Raises:
        ConfigError: if it has more, or fewer.
    """
    entries = objective.first_code + codec.count
    for label in objective.supervises:
        rows = setting.outputs.get(label, entries)
        if rows != entries:
            texts = f"{objective.first_code} tokens and " if objective.first_code else ""
            raise ConfigError.at(
                "model.vocabulary",
                f"must be {entries}, for {texts}the {codec.count} codes of `{codec.path}`, but "
                f"target {label} has {rows} outputs",
            )
