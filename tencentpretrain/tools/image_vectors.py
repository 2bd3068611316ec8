"""One vector for each image of folders, tar files and lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tencentpretrain.data.media.examples import decoded, image_stream
from tencentpretrain.data.media.lists import MediaEntry
from tencentpretrain.data.media.records import read_entry
from tencentpretrain.data.media.transforms import ImageTransform, ImageTransformConfig
from tencentpretrain.data.objectives.image_text import IMAGE
from tencentpretrain.errors import CheckpointError
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tasks.pixels import TRANSFORM, saved_transform
from tencentpretrain.tools.media_vectors import MediaVectors
from tencentpretrain.tools.saved_model import SavedModel
from tencentpretrain.train.source import saved_config, saved_task
from tencentpretrain.types import SRC, Stream


def image_stream_name(saved: SavedModel) -> str:
    """The stream in which a model reads images.

    Raises:
        CheckpointError: if it reads none.
    """
    tower = saved.config.towers.get(IMAGE)
    if tower is not None and tower.embedding.patches is not None:
        return IMAGE
    is_alone = any(part.name == "patch" for part in saved.config.embedding.parts.values())
    if not is_alone:
        raise CheckpointError(
            f"`{saved.checkpoint.path}` reads no images alone; give the run of a model such as "
            "vit/tiny or clip/tiny"
        )
    return SRC


def trained_transform(saved: SavedModel) -> ImageTransform:
    """How images became pixels when the model was trained.

    Raises:
        CheckpointError: if the checkpoint does not say.
    """
    told = getattr(saved.config.objective, TRANSFORM, None)
    if isinstance(told, ImageTransformConfig):
        return ImageTransform(told)
    # Of a fine-tuned run the task knows it; of a converted one its config does.
    found = saved_transform(saved_task(saved.checkpoint))
    found = found or saved_transform(saved_config(saved.checkpoint).get("task") or {})
    if found is None:
        raise CheckpointError(
            f"`{saved.checkpoint.path}` does not say how images become pixels; give the run of a "
            "model that was trained on images"
        )
    return ImageTransform(found)


class ImageVectors(MediaVectors):
    """Computes vectors of images.

    Args:
        read: From the stream of several images to their vectors [B, D].
        transform: How they become pixels.
        machine: How the model is run.
    """

    def __init__(
        self, read: Callable[[Stream], Tensor], transform: ImageTransform, machine: Machine
    ) -> None:
        super().__init__(read, machine)
        self._transform = transform

    def stream(self, entries: Sequence[MediaEntry]) -> Stream:
        images = [decoded(read_entry(entry), entry.where) for entry in entries]
        pixels = torch.stack([self._transform.fit(image) for image in images])
        return image_stream(self._transform.normalise(pixels))
