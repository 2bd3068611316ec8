"""Examples of labelled images, wherever the images and labels come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.config import Config, Probability
from tencentpretrain.data.media.images import Pixels, decode_image
from tencentpretrain.data.media.mixing import MixConfig, mix
from tencentpretrain.data.media.transforms import ImageTransform, ImageTransformConfig
from tencentpretrain.errors import named
from tencentpretrain.types import SRC, Batch, Labels, Layout, Stream

Example = dict[str, NDArray[Any]]


class MixedLabelsConfig(Config):
    """What training makes of images and classes."""

    mix: MixConfig = MixConfig()
    """Mixup and CutMix in training."""
    smoothing: Probability = 0.0
    """Part of the probability of a class that is spread over all, in training."""


class LabelledImageConfig(MixedLabelsConfig):
    """Keys of what learns the classes of images."""

    transform: ImageTransformConfig = ImageTransformConfig()
    """How images become pixels."""


class ImageSource(Protocol):
    """Where labelled images lie."""

    def __len__(self) -> int: ...
    def image(self, index: int) -> bytes:
        """Encoded bytes."""
        ...

    def label(self, index: int) -> int | None:
        """Number of the class; None where that is not known."""
        ...

    def where(self, index: int) -> str:
        """What messages call the image."""
        ...


class LabelledImages:
    """Makes examples of images, and batches of examples.

    A training image may be mixed with any other one, which is decoded for that purpose alone: what
    an example is does not depend on the rest of its batch. Its label is then a probability for each
    class. Evaluation changes nothing of the images and has one class for each.

    Args:
        config: How.
        source: Of images and labels.
        classes: Number of classes.
    """

    def __init__(self, config: LabelledImageConfig, source: ImageSource, classes: int) -> None:
        self._transform = ImageTransform(config.transform)
        self._config = config
        self._source = source
        self._classes = classes

    def make(self, index: int, random: np.random.Generator | None) -> Example:
        """Image `index`, as for evaluation where there is nothing to draw from."""
        source, config = self._source, self._config
        label = source.label(index)
        pixels = self._pixels(index, random)
        if label is None:
            return {"pixels": pixels.numpy()}
        if random is None or not (config.mix.is_on or config.smoothing):
            return {"pixels": pixels.numpy(), "row_label": np.array([label])}
        shares = np.zeros(self._classes)
        shares[label] = 1.0
        if config.mix.applies(random):
            other = int(random.integers(len(source)))
            pixels, share = mix(pixels, self._pixels(other, random), config.mix, random)
            shares[label] = share
            shares[source.label(other)] += 1 - share
        shares = shares * (1 - config.smoothing) + config.smoothing / self._classes
        return {"pixels": pixels.numpy(), "row_label": shares.astype(np.float32)[None]}

    def collate(self, examples: Sequence[Example], target: str) -> Batch:
        """Normalised pixels of all examples, and labels of `target` where there are any."""
        # All at once: as many small sums would cost more than the large one.
        pixels = torch.from_numpy(np.stack([example["pixels"] for example in examples]))
        streams = {SRC: image_stream(self._transform.normalise(pixels))}
        batch = Batch(streams, tokens=len(examples))
        if "row_label" in examples[0]:
            values = np.concatenate([example["row_label"] for example in examples])
            batch.labels[target] = Labels(torch.from_numpy(values))
        return batch

    def _pixels(self, index: int, random: np.random.Generator | None) -> Tensor:
        image = decoded(self._source.image(index), self._source.where(index))
        return self._transform.draw(image, random)


def decoded(data: bytes, where: str) -> Pixels:
    """Pixels [H, W, 3] of the encoded image that messages call `where`.

    Raises:
        DataError: as `decode_image`, naming the image.
    """
    with named(where):
        return decode_image(data)


def image_stream(pixels: Tensor) -> Stream:
    """The stream of `pixels` [B, 3, H, W]; how many positions they are, the embedding knows."""
    return Stream({"pixels": pixels}, Layout(torch.ones(len(pixels), 1, dtype=torch.bool)))
