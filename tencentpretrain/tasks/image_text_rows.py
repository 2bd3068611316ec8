"""Images and texts to be matched: read once, and put together for two towers or for one row.

Shapes: I images, T texts, P width of compared vectors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.data.media.examples import decoded, image_stream
from tencentpretrain.data.media.lists import MediaEntry
from tencentpretrain.data.media.records import read_entry
from tencentpretrain.data.media.transforms import ImageTransform, ImageTransformConfig
from tencentpretrain.data.objectives.base import Example
from tencentpretrain.data.objectives.image_text import IMAGE, TEXT
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import Integers
from tencentpretrain.tasks.base import TaskExamples
from tencentpretrain.tasks.text import TextRows
from tencentpretrain.types import SRC, Batch, Labels, Stream

CONTRAST: Final = "contrast"
"""Target that compares vectors of two towers."""
MATCH: Final = "match"
"""Target that reads a text and an image in one row."""
IMAGES_FIRST: Final = 1 << 30
"""Size of an image among texts, so that none of them share a batch but at the border."""


@dataclass(frozen=True)
class Collection:
    """Different images and texts, and which belong together.

    Args:
        images: Where they lie.
        texts: The texts.
        pairs: [N, 2] numbers of an image and of a text for each row of a file, -1 where not known.
        group: How many texts in a row stand for one thing, such as the prompts of a class.
    """

    images: Sequence[MediaEntry]
    texts: Sequence[str]
    pairs: Integers
    group: int = 1

    @classmethod
    def of_captions(cls, rows: Sequence[MediaEntry]) -> Collection:
        """Of rows with an image and its caption each; either may occur several times."""
        images = {(row.path, row.offset): row for row in rows}
        numbers = {key: number for number, key in enumerate(images)}
        texts = {text: number for number, text in enumerate(dict.fromkeys(r.text for r in rows))}
        pairs = [(numbers[row.path, row.offset], texts[row.text]) for row in rows]
        return cls(list(images.values()), list(texts), np.array(pairs, np.int64))

    @classmethod
    def of_classes(
        cls,
        rows: Sequence[MediaEntry],
        numbers: Sequence[int],
        labels: Sequence[str],
        templates: Sequence[str],
    ) -> Collection:
        """Of images whose texts are made of the names of classes, and numbers of their classes."""
        texts = [
            template.replace("{label}", label.replace("_", " "))
            for label in labels
            for template in templates
        ]
        group = len(templates)
        pairs = [
            (number, label * group if label >= 0 else -1) for number, label in enumerate(numbers)
        ]
        return cls(rows, texts, np.array(pairs, np.int64), group)

    @property
    def things(self) -> Integers:
        """Number [N] of what the text of each row stands for."""
        return self.pairs[:, 1] // self.group

    def relevant(self) -> NDArray[np.bool_]:
        """Which texts, or groups of them, belong to which image [I, T / group]."""
        found = np.zeros((len(self.images), len(self.texts) // self.group), np.bool_)
        found[self.pairs[:, 0], self.things] = True
        return found


class ImageTextExamples(TaskExamples):
    """What a collection is for one kind of model; to train on, each row is a pair.

    Args:
        collection: Images and texts.
        rows: The texts, encoded.
        transform: How images become pixels.
        is_labelled: Whether it is known what belongs together.
    """

    def __init__(
        self,
        collection: Collection,
        rows: TextRows,
        transform: ImageTransformConfig,
        is_labelled: bool,
    ) -> None:
        self.collection = collection
        self.is_labelled = is_labelled
        self._rows = rows
        self._transform = ImageTransform(transform)
        self._seed: int | None = None
        # The same image is asked for with one text after another.
        self._fitted = lru_cache(maxsize=4)(self._fit)

    def vary(self, seed: int) -> None:
        self._seed = seed

    def __len__(self) -> int:
        return len(self._items()) if self._seed is None else len(self.collection.pairs)

    def make(self, epoch: int, index: int) -> Example:
        if self._seed is None:
            return self.item(index)
        random = generator(self._seed, epoch, index)
        image, text = self.collection.pairs[index].tolist()
        # Of several texts that mean the same one is as good as the other.
        text += int(random.integers(self.collection.group))
        return self.pair(image, text, random)

    @abstractmethod
    def _items(self) -> range:
        """Numbers of what is computed apart when everything is compared with everything."""

    @abstractmethod
    def item(self, index: int) -> Example:
        """One of them."""

    @abstractmethod
    def pair(self, image: int, text: int, random: Generator) -> Example:
        """An image and a text to train on."""

    @abstractmethod
    def scores(self, outputs: Sequence[Any]) -> NDArray[np.float32]:
        """Scores [I, T / group] of all images with all texts, of what was said of each item."""

    def text(self, number: int) -> Example:
        """Ids and segments of a text."""
        return self._rows.make(number)

    def pixels(self, number: int, random: Generator | None = None) -> NDArray[np.uint8]:
        """An image [3, H, W] before normalisation, changed as `random` draws, if it does."""
        if random is None:
            return self._fitted(number)
        pixels: NDArray[np.uint8] = self._transform.augment(self._image(number), random).numpy()
        return pixels

    def stream(self, examples: Sequence[Example]) -> Stream:
        """The texts of examples."""
        return self._rows.stream(examples)

    def normalised(self, examples: Sequence[Example]) -> Tensor:
        """Pixels [B, 3, H, W] of examples."""
        stacked = torch.from_numpy(np.stack([example["pixels"] for example in examples]))
        return self._transform.normalise(stacked)

    def _image(self, number: int) -> NDArray[np.uint8]:
        entry = self.collection.images[number]
        return decoded(read_entry(entry), entry.where)

    def _fit(self, number: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self._transform.fit(self._image(number)).numpy()
        return pixels


class TowerExamples(ImageTextExamples):
    """For two towers: every image and every text is computed once."""

    def _items(self) -> range:
        return range(len(self.collection.images) + len(self.collection.texts))

    def item(self, index: int) -> Example:
        images = len(self.collection.images)
        return {"pixels": self.pixels(index)} if index < images else self.text(index - images)

    def pair(self, image: int, text: int, random: Generator) -> Example:
        return self.text(text) | {"pixels": self.pixels(image, random)}

    def collate(self, examples: list[Example]) -> Batch:
        streams: dict[str, Stream] = {}
        images, texts = ([e for e in examples if key in e] for key in ("pixels", "ids"))
        if texts:
            streams[TEXT] = self.stream(texts)
        if images:
            streams[IMAGE] = image_stream(self.normalised(images))
        return Batch(streams, tokens=sum(len(example["ids"]) for example in texts))

    def sizes(self) -> Integers:
        lengths = self._rows.ids.lengths
        if self._seed is not None:
            return lengths[self.collection.pairs[:, 1]]
        return np.concatenate([np.full(len(self.collection.images), IMAGES_FIRST), lengths])

    def scores(self, outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        images, texts = np.split(np.stack(outputs), [len(self.collection.images)])
        group = self.collection.group
        if group > 1:
            texts = texts.reshape(-1, group, texts.shape[1]).mean(1)
            texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
        products: NDArray[np.float32] = images @ texts.T
        return products


class JointExamples(ImageTextExamples):
    """For one row of both: every image is computed with every text."""

    def _items(self) -> range:
        return range(len(self.collection.images) * len(self.collection.texts))

    def item(self, index: int) -> Example:
        image, text = divmod(index, len(self.collection.texts))
        return self.text(text) | {"pixels": self.pixels(image)}

    def pair(self, image: int, text: int, random: Generator) -> Example:
        """Half of the texts have an image that does not belong to them, where there is one."""
        thing, things = text // self.collection.group, self.collection.things
        shown = image
        if random.random() < 0.5:
            other = int(random.integers(len(things)))
            belongs = things[self.collection.pairs[:, 0] == self.collection.pairs[other, 0]]
            if thing not in belongs:
                shown = int(self.collection.pairs[other, 0])
        match = np.array([shown == image], np.int64)
        return self.text(text) | {"pixels": self.pixels(shown, random), "match": match}

    def collate(self, examples: list[Example]) -> Batch:
        stream = self.stream(examples)
        inputs = stream.inputs | {"pixels": self.normalised(examples)}
        tokens = sum(len(example["ids"]) for example in examples)
        batch = Batch({SRC: Stream(inputs, stream.layout)}, tokens=tokens)
        if "match" in examples[0]:
            labels = np.concatenate([example["match"] for example in examples])
            batch.labels[MATCH] = Labels(torch.from_numpy(labels))
        return batch

    def scores(self, outputs: Sequence[float]) -> NDArray[np.float32]:
        group = self.collection.group
        shape = len(self.collection.images), len(self.collection.texts) // group, group
        mean: NDArray[np.float32] = np.array(outputs, np.float32).reshape(shape).mean(2)
        return mean
