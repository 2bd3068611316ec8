"""Images alone, for models that make them again."""

from __future__ import annotations

from collections.abc import Sequence

from tencentpretrain.config import ComponentConfig
from tencentpretrain.data.media.examples import image_stream
from tencentpretrain.data.objectives.base import OBJECTIVES, Example
from tencentpretrain.data.objectives.codes import WholeImageConfig
from tencentpretrain.data.objectives.pixels import PixelObjective, require_images
from tencentpretrain.data.order import generator
from tencentpretrain.types import SRC, Batch


@OBJECTIVES.register("reconstruct")
class ReconstructObjective(PixelObjective):
    """Pixels, which are what is learned, too."""

    class Config(ComponentConfig):
        transform: WholeImageConfig = WholeImageConfig()
        """How images become pixels."""

    config: Config
    supervises = ("reconstruct",)

    def _prepare(self) -> None:
        require_images(self)
        super()._prepare()

    def make(self, epoch: int, index: int) -> Example:
        random = generator(self.seed, epoch, index)
        return {"pixels": self.pixels(int(self.documents[index]), random)}

    def collate(self, examples: Sequence[Example]) -> Batch:
        stream = image_stream(self.normalised(examples))
        return Batch({SRC: stream}, tokens=len(examples))
