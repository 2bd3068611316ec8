"""Captions and the codes of their images in one row (Ramesh et al., 2021, DALL-E, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from tencentpretrain.config import PositiveInt, check
from tencentpretrain.data.objectives.base import OBJECTIVES, Example
from tencentpretrain.data.objectives.codes import CodesConfig, CodesObjective, WholeImageConfig
from tencentpretrain.data.objectives.image_text import (
    IMAGE,
    SPECIALS,
    TEXT,
    ImageTextConfig,
    ImageTextObjective,
)
from tencentpretrain.data.objectives.records import tell_cut
from tencentpretrain.data.order import generator
from tencentpretrain.data.rows import Grid
from tencentpretrain.types import SRC, Batch, Labels, Stream

CODE_PLACES: Final = "code_places"
"""Extra of a batch: where in its grid of ids the codes of its images belong."""
IMAGES: Final = "images"
"""Extra of a batch: what the codes are of."""


@OBJECTIVES.register("dalle")
class DalleObjective(CodesObjective, ImageTextObjective):
    """Rows "[cls] caption [sep] codes", in which codes follow on the last entry for tokens.

    Each kind has labels of its own, so that the targets `text` and `image` weigh them. Until an
    annotator knows the codes, the first one stands for all.
    """

    class Config(ImageTextConfig):
        length: Annotated[int, Field(ge=8)] = 333
        """Greatest length of a row: a caption, special tokens, and all codes but the last."""
        transform: WholeImageConfig = WholeImageConfig(size=256, resize=256)
        """How images become pixels."""
        cell_size: PositiveInt = 16
        """Height and width of what a code stands for, in pixels."""
        codes: CodesConfig = CodesConfig()
        """Where the codes of images come from."""
        aligned: bool = True
        """Whether each code has a position of its own, whatever the caption; else positions go on
        behind the caption (TencentPretrain)."""
        supervise_text: bool = True
        """Learn captions too, each token from those before it; else they are what all of a row
        may see, in models with the mask `prefix`."""

        @check("transform", "cell_size")
        def _cells_fit(self) -> str | None:
            if self.transform.size % self.cell_size == 0:
                return None
            return f"cell_size must divide transform.size={self.transform.size}"

        @check("length", "transform", "cell_size")
        def _has_room(self) -> str | None:
            missing = SPECIALS + 1 - self.first_position
            if missing <= 0:
                return None
            least = self.length + missing
            return f"length must be at least {least}, for {self.side**2} codes and a caption"

        @property
        def side(self) -> int:
            """Codes from one edge of an image to the other."""
            return self.transform.size // self.cell_size

        @property
        def first_position(self) -> int:
            """Position of the first code where each code has its own.

            It is also the greatest number of tokens of a caption, special tokens included.
            """
            return self.length + 1 - self.side**2

        def position(self, tokens: int) -> int:
            """Position of the first code behind a caption of so many tokens."""
            return self.first_position if self.aligned else tokens

    config: Config
    supervises = (TEXT, IMAGE)

    def _prepare(self) -> None:
        super()._prepare()
        self._room = self.config.first_position - SPECIALS
        cut = int((self.shards.lengths()[self.documents] > self._room).sum())
        tell_cut(self, cut, f"captions at their end to {self._room} tokens")

    @property
    def first_code(self) -> int:
        return self.tokenizer.vocab_size

    def make(self, epoch: int, index: int) -> Example:
        document = int(self.documents[index])
        pixels = self.pixels(document, generator(self.seed, epoch, index))
        return {"ids": self.row(document), "pixels": pixels}

    def collate(self, examples: Sequence[Example]) -> Batch:
        config, captions = self.config, [example["ids"] for example in examples]
        count = config.side**2
        # The last code is not read: nothing is predicted behind it.
        read = np.arange(count - 1)
        codes = np.full(count - 1, self.first_code)
        grid = Grid([np.append(ids, codes) for ids in captions], config.pad_to, config.length)
        rows = {
            "ids": [np.append(ids, codes) for ids in captions],
            "segments": [np.append(0 * ids, codes > 0) for ids in captions],
            "positions": [
                np.append(np.arange(len(ids)), config.position(len(ids)) + read) for ids in captions
            ],
        }
        fills = {"ids": self.tokenizer.pad or 0}
        inputs = {name: grid.fill(values, fills.get(name, 0)) for name, values in rows.items()}
        layout = grid.layout()
        if not config.supervise_text:
            layout.prefix = torch.tensor([len(ids) for ids in captions])
        places = [len(ids) - 1 + np.arange(count) for ids in captions]
        extras = {
            IMAGES: self.normalised(examples),
            CODE_PLACES: grid.flat([len(ids) + read for ids in captions]),
        }
        labels = {
            TEXT: self._captions(captions, grid),
            IMAGE: Labels(torch.full((len(captions) * count,), self.first_code), grid.flat(places)),
        }
        return Batch({SRC: Stream(inputs, layout)}, labels, grid.tokens, extras)

    def _captions(self, captions: Sequence[np.ndarray], grid: Grid) -> Labels:
        """Each token of the captions but the first, at the position before it; maybe none."""
        kept = [ids if self.config.supervise_text else ids[:1] for ids in captions]
        values = np.concatenate([ids[1:] for ids in kept])
        return Labels(
            torch.from_numpy(values), grid.flat([np.arange(len(ids) - 1) for ids in kept])
        )

    def images(self, batch: Batch) -> Tensor:
        images: Tensor = batch.extras[IMAGES]
        return images

    def with_codes(self, batch: Batch, codes: Tensor) -> Batch:
        stream, entries = batch.streams[SRC], codes + self.first_code
        ids, places = stream.inputs["ids"], batch.extras[CODE_PLACES]
        filled = ids.flatten().index_copy(0, places, entries[:, :-1].flatten()).view(ids.shape)
        labels = batch.labels | {IMAGE: Labels(entries.flatten(), batch.labels[IMAGE].index)}
        streams = batch.streams | {SRC: Stream(stream.inputs | {"ids": filled}, stream.layout)}
        return replace(batch, streams=streams, labels=labels)
