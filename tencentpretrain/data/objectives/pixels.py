"""What objectives share that read stored images: whether there are any, and pixels of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.data.media.examples import decoded
from tencentpretrain.data.media.transforms import ImageTransform
from tencentpretrain.data.objectives.base import Example, Objective
from tencentpretrain.data.packing import Documents
from tencentpretrain.data.shard_format import DURATION, MAIN, counted_column
from tencentpretrain.errors import DataError


class StoredImages(Documents, Protocol):
    """What is read of stored images; `ShardSet` is one."""

    @property
    def columns(self) -> Mapping[str, Any]: ...
    def media(self, document: int) -> bytes: ...
    def where(self, document: int) -> str: ...


def require_images(objective: Objective) -> None:
    """Refuse shards that hold no images.

    Raises:
        DataError: naming how to preprocess.
    """
    columns = [*getattr(objective.shards, "columns", ())]
    if counted_column(columns) == MAIN or DURATION in columns:
        raise DataError(
            f"objective `{objective.name}` reads images, but the data has none; preprocess with "
            "corpus.format=image or choose another objective"
        )


class PixelObjective(Objective):
    """Its config has a `transform`, and its examples "pixels" [3, H, W] uint8.

    Training changes images as the example's own generator draws; evaluation changes nothing.
    """

    config: Any
    shards: StoredImages
    needs = ()

    def _prepare(self) -> None:
        self._transform = ImageTransform(self.config.transform)

    def __len__(self) -> int:
        return len(self.documents)

    def pixels(self, document: int, random: Generator) -> NDArray[np.uint8]:
        """An image [3, H, W] before normalisation.

        Raises:
            DataError: naming a file whose path is stored and that is gone or has changed.
        """
        image = decoded(self.shards.media(document), self.shards.where(document))
        pixels = self._transform.draw(image, random if self.is_training else None)
        made: NDArray[np.uint8] = pixels.numpy()
        return made

    def normalised(self, examples: Sequence[Example]) -> Tensor:
        """Pixels [B, 3, H, W] of all examples."""
        # All at once: as many small sums would cost more than the large one.
        stacked = torch.from_numpy(np.stack([example["pixels"] for example in examples]))
        return self._transform.normalise(stacked)
