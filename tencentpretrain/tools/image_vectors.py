"""One vector for each image of folders, tar files and lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

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
from tencentpretrain.tools.saved_model import SavedModel
from tencentpretrain.tools.vector_file import Vectors
from tencentpretrain.train.precision import autocast
from tencentpretrain.train.source import saved_config, saved_task
from tencentpretrain.types import SRC, Stream, map_tensors


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


class ImageVectors:
    """Computes vectors of images.

    Args:
        read: From the stream of several images to their vectors [B, D].
        transform: How they become pixels.
        machine: How the model is run.
    """

    def __init__(
        self, read: Callable[[Stream], Tensor], transform: ImageTransform, machine: Machine
    ) -> None:
        self._read, self._transform, self._machine = read, transform, machine

    def vectors(self, entries: Sequence[MediaEntry]) -> Iterator[Vectors]:
        """Vectors [n, D] of some of the images at a time, in their order.

        Raises:
            DataError: naming an image that cannot be decoded.
        """
        rest = iter(entries)
        while part := list(islice(rest, self._machine.batch_size)):
            pixels = torch.stack([self._pixels(entry) for entry in part])
            with torch.inference_mode(), autocast(self._machine.dtype, self._machine.device):
                stream = image_stream(self._transform.normalise(pixels))
                found = self._read(map_tensors(stream, self._to_device))
            yield found.float().cpu().numpy()

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._machine.device)

    def _pixels(self, entry: MediaEntry) -> Tensor:
        return self._transform.fit(decoded(read_entry(entry), entry.where))
