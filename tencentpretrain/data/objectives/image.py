"""Images with their class, as for the pre-training of image classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tencentpretrain.config import ComponentConfig
from tencentpretrain.data.media.examples import LabelledImageConfig, LabelledImages
from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Objective
from tencentpretrain.data.objectives.pixels import require_images
from tencentpretrain.data.objectives.records import Records
from tencentpretrain.data.order import generator
from tencentpretrain.data.shard_format import LABEL
from tencentpretrain.errors import DataError
from tencentpretrain.types import Batch


class Images(Records, Protocol):
    """What is read of stored images; `ShardSet` is one."""

    @property
    def labels(self) -> Sequence[str]: ...
    def media(self, document: int) -> bytes: ...
    def where(self, document: int) -> str: ...


@OBJECTIVES.register("image")
class ImageObjective(Objective):
    """Images and the classes that they show; see `LabelledImages`."""

    class Config(LabelledImageConfig, ComponentConfig):
        pass

    config: Any
    shards: Images
    supervises = ("classify",)
    needs = ()

    def _prepare(self) -> None:
        require_images(self)
        missing = int((self.shards.lengths(LABEL)[self.documents] == 0).sum())
        if missing:
            raise DataError(
                f"objective `{self.name}` needs a class for each image, but {missing:,} of "
                f"{len(self.documents):,} have none; put them into folders of classes, or list "
                "them with their labels"
            )
        self._images = LabelledImages(self.config, self, len(self.shards.labels))

    def __len__(self) -> int:
        return len(self.documents)

    def image(self, index: int) -> bytes:
        """Encoded bytes of an image."""
        return self.shards.media(int(self.documents[index]))

    def label(self, index: int) -> int:
        """Number of the class of an image."""
        return self.shards.label(int(self.documents[index]))

    def where(self, index: int) -> str:
        """What messages call an image."""
        return self.shards.where(int(self.documents[index]))

    def make(self, epoch: int, index: int) -> Example:
        random = generator(self.seed, epoch, index) if self.is_training else None
        return self._images.make(index, random)

    def collate(self, examples: Sequence[Example]) -> Batch:
        return self._images.collate(examples, self.supervises[0])
