"""Images alone, for models that make them again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tencentpretrain.config import ComponentConfig
from tencentpretrain.data.media.examples import image_stream
from tencentpretrain.data.media.images import decode_image
from tencentpretrain.data.media.transforms import ImageTransform
from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Objective
from tencentpretrain.data.objectives.codes import WholeImageConfig
from tencentpretrain.data.objectives.image import Images
from tencentpretrain.data.order import generator
from tencentpretrain.data.shard_format import MAIN, counted_column
from tencentpretrain.errors import DataError
from tencentpretrain.types import SRC, Batch


@OBJECTIVES.register("reconstruct")
class ReconstructObjective(Objective):
    """Pixels, which are what is learned, too."""

    class Config(ComponentConfig):
        transform: WholeImageConfig = WholeImageConfig()
        """How images become pixels."""

    config: Config
    shards: Images
    supervises = ("reconstruct",)
    needs = ()

    def _prepare(self) -> None:
        if counted_column([*getattr(self.shards, "columns", ())]) == MAIN:
            raise DataError(
                f"objective `{self.name}` reads images, but the data has none; preprocess with "
                "corpus.format=image or choose another objective"
            )
        self._transform = ImageTransform(self.config.transform)

    def __len__(self) -> int:
        return len(self.documents)

    def make(self, epoch: int, index: int) -> Example:
        image = decode_image(self.shards.media(int(self.documents[index])))
        if not self.is_training:
            return {"pixels": self._transform.fit(image).numpy()}
        random = generator(self.seed, epoch, index)
        return {"pixels": self._transform.augment(image, random).numpy()}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Normalise the pixels of all examples at once."""
        pixels = torch.from_numpy(np.stack([example["pixels"] for example in examples]))
        stream = image_stream(self._transform.normalise(pixels))
        return Batch({SRC: stream}, tokens=len(examples))
