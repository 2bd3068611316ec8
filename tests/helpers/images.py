"""Shards of captioned pictures in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tencentpretrain.data.shard_format import MEDIA
from tests.helpers.pictures import encoded
from tests.helpers.shards import FakeShards


def picture(number: int, height: int = 8, width: int = 8) -> bytes:
    """Bytes of an image whose pixels all have a colour that no other number has."""
    colour = np.array([number % 256, number // 256 % 256, 255 - number % 256], np.uint8)
    return encoded(np.tile(colour, (height, width, 1)))


class FakeImages(FakeShards):
    """Captions with images.

    Args:
        captions: token ids of each.
        images: encoded bytes of each.
    """

    def __init__(self, captions: Sequence[Sequence[int]], images: Sequence[bytes]) -> None:
        super().__init__([[caption] for caption in captions])
        self.columns = {MEDIA: None}
        self._images = images

    def media(self, document: int) -> bytes:
        return self._images[document]

    def where(self, document: int) -> str:
        return f"image {document}"
