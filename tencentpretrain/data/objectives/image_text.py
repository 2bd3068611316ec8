"""Images and their captions: each in a stream of its own (CLIP), or in one row (ViLT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from tencentpretrain.config import Probability
from tencentpretrain.data.masking import Masker, MaskingConfig
from tencentpretrain.data.media.examples import image_stream
from tencentpretrain.data.media.transforms import ImageTransformConfig
from tencentpretrain.data.objectives.base import OBJECTIVES, Example, ObjectiveConfig
from tencentpretrain.data.objectives.pixels import PixelObjective
from tencentpretrain.data.objectives.records import end_token, tell_cut
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import Integers
from tencentpretrain.data.rows import Grid
from tencentpretrain.data.shard_format import MEDIA, PATH
from tencentpretrain.errors import DataError
from tencentpretrain.types import SRC, Batch, Labels, Stream

TEXT: Final = "text"
"""Name of the stream of captions."""
IMAGE: Final = "image"
"""Name of the stream of pixels."""
SPECIALS: Final = 2
"""Tokens of a row beside its text."""
TRIES: Final = 32
"""Other documents that are drawn until one has another caption and another image."""


class ImageTextConfig(ObjectiveConfig):
    """Keys of the objectives that read captioned images."""

    transform: ImageTransformConfig = ImageTransformConfig(interpolation="bicubic")
    """How images become pixels."""


class ImageTextObjective(PixelObjective):
    """Rows [cls] caption [sep], or what else begins and ends texts, and pixels."""

    def _prepare(self) -> None:
        columns = getattr(self.shards, "columns", ())
        lengths = self.shards.lengths()[self.documents]
        if not ({MEDIA, PATH} & set(columns)) or not lengths.any():
            raise DataError(
                f"objective `{self.name}` needs images with captions; preprocess with "
                "corpus.format=image_text or choose another objective"
            )
        tokenizer = self.tokenizer
        self._start = tokenizer.cls if tokenizer.cls is not None else self.special("bos")
        self._end = self.special("sep") if tokenizer.cls is not None else end_token(self)
        self._room = self.config.length - SPECIALS
        super()._prepare()
        cut = int((lengths > self._room).sum())
        tell_cut(self, cut, f"captions to length={self.config.length}")

    def row(self, document: int) -> Integers:
        """Ids of a caption with those around it."""
        text = self.shards.read(document, 0, self._room)
        return np.concatenate(([self._start], text, [self._end]), dtype=np.int64)

    def rows(self, examples: Sequence[Example]) -> tuple[Grid, Tensor]:
        """The grid of the captions, and their ids [B, S] in it."""
        grid = self.grid(examples, "ids", self.config.length)
        return grid, grid.fill([example["ids"] for example in examples], self.tokenizer.pad or 0)


@OBJECTIVES.register("clip")
class ClipObjective(ImageTextObjective):
    """Captions in the stream "text", images in "image" (CLIP, Radford et al., 2021, section 2.3).

    Row i of one belongs to row i of the other. What else is in the batch serves as the contrast, so
    that there are no labels.
    """

    class Config(ImageTextConfig):
        pass

    config: Config
    supervises = ("contrast",)
    streams = (TEXT, IMAGE)

    def make(self, epoch: int, index: int) -> Example:
        document = int(self.documents[index])
        pixels = self.pixels(document, generator(self.seed, epoch, index))
        return {"ids": self.row(document), "pixels": pixels}

    def collate(self, examples: Sequence[Example]) -> Batch:
        grid, ids = self.rows(examples)
        streams = {
            TEXT: Stream({"ids": ids}, grid.layout()),
            IMAGE: image_stream(self.normalised(examples)),
        }
        return Batch(streams, tokens=grid.tokens)


@OBJECTIVES.register("vilt")
class ViltObjective(ImageTextObjective):
    """Captions with masks, and an image that belongs to the caption (1) or not (0).

    Masked words are to be found only beside their own image, where that can help; captions beside
    other images are masked all the same, so that masks do not tell (ViLT, Kim et al., 2021, section
    3.2).
    """

    class Config(MaskingConfig, ImageTextConfig):
        mismatch_rate: Probability = 0.5
        """Part of the captions that have the image of another document, with another caption."""

    config: Config
    supervises = ("mlm", "match")

    def _prepare(self) -> None:
        super()._prepare()
        self.special("mask")
        self._mask = Masker(self.config, self.tokenizer)
        if self.config.mismatch_rate:
            self._check_captions()

    def _check_captions(self) -> None:
        """Refuse documents that are all alike; a few held out may well be.

        Raises:
            DataError: if no image belongs to another caption.
        """
        count, first = self.shards.documents, self.row(0)
        if all(np.array_equal(first, self.row(document)) for document in range(1, count)):
            raise DataError(
                f"objective `{self.name}` tells captions of other images, but all {count:,} "
                "captions are the same; set model.objective.mismatch_rate=0 or give more data"
            )

    def make(self, epoch: int, index: int) -> Example:
        random = generator(self.seed, epoch, index)
        document = shown = int(self.documents[index])
        if random.random() < self.config.mismatch_rate:
            shown = self._other(document, random)
        original = self.row(document)
        ids, chosen = self._mask(original, random)
        is_match = shown == document
        return {
            "ids": ids,
            "pixels": self.pixels(shown, random),
            "index": chosen if is_match else chosen[:0],
            "labels": original[chosen] if is_match else original[:0],
            "match": np.array([is_match], np.int64),
        }

    def _other(self, document: int, random: Generator) -> int:
        """A document with another caption and another image; the same one if hardly any has."""
        caption, media = self.row(document), self.shards.media(document)
        for _ in range(TRIES):
            other = int(self.documents[random.integers(len(self.documents))])
            differs = not np.array_equal(self.row(other), caption)
            if differs and self.shards.media(other) != media:
                return other
        return document

    def collate(self, examples: Sequence[Example]) -> Batch:
        grid, ids = self.rows(examples)
        stream = Stream({"ids": ids, "pixels": self.normalised(examples)}, grid.layout())
        masked = torch.from_numpy(np.concatenate([example["labels"] for example in examples]))
        index = grid.flat([example["index"] for example in examples])
        match = torch.from_numpy(np.concatenate([example["match"] for example in examples]))
        labels = {"mlm": Labels(masked, index, grid.width), "match": Labels(match)}
        return Batch({SRC: stream}, labels, grid.tokens)
