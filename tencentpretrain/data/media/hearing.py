"""From an encoded sound to the frames that a model reads, and from frames to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from tencentpretrain.config import Config, PositiveFloat
from tencentpretrain.data.media.audio import Samples, decode_audio, resampler
from tencentpretrain.data.media.filter_banks import STEP, FilterBank, Frames
from tencentpretrain.data.media.spec_augment import SpecAugmentConfig, spec_augment
from tencentpretrain.data.packing import Integers
from tencentpretrain.data.rows import Grid
from tencentpretrain.types import Stream

FRAMES: Final = "frames"
"""Name of the input in a stream."""


class VariationConfig(Config):
    """How sounds differ between epochs of training."""

    augment: SpecAugmentConfig = SpecAugmentConfig()
    """What is hidden of frames while training."""
    speeds: list[PositiveFloat] = []
    """Speeds that one is drawn of while training, such as 0.9, 1 and 1.1 (Ko et al., 2015)."""


class Hearing:
    """Makes frames [T, F] of encoded sounds.

    Args:
        bank: Makes them of samples.
        variation: How they differ between epochs.
    """

    def __init__(self, bank: FilterBank, variation: VariationConfig) -> None:
        self.bank = bank
        self._policy = variation.augment.resolved()
        self._speeds = variation.speeds

    def __call__(
        self, data: bytes, random: np.random.Generator | None = None, limit: int | None = None
    ) -> Frames:
        """Frames of a file, changed as `random` draws; always the same without it.

        Args:
            data: Encoded bytes.
            random: Of the example; None changes nothing.
            limit: Steps of 10 ms behind which nothing is heard, so that what is normalised and
                hidden is what is read; None is the whole sound.

        Raises:
            DataError: if it cannot be decoded.
        """
        rate = self.bank.config.rate
        samples = decode_audio(data, rate)
        if random is not None and self._speeds:
            speed = self._speeds[int(random.integers(len(self._speeds)))]
            samples = at_speed(samples, rate, speed)
        if limit is not None:
            samples = samples[: round(limit * STEP * rate)]
        frames = self.bank(samples)[:limit]
        return frames if random is None else spec_augment(frames, self._policy, random)

    def frames(self, milliseconds: Integers) -> Integers:
        """Greatest number of frames [N] of sounds that are so long [N]."""
        slowest = min([1.0, *self._speeds])
        return np.ceil(milliseconds / (1000 * STEP * slowest)).astype(np.int64)


def at_speed(samples: Samples, rate: int, speed: float) -> Samples:
    """`samples` [N], of which there are `rate` a second, played so many times as fast."""
    if speed == 1:
        return samples
    played: Samples = resampler(round(rate * speed), rate)(torch.from_numpy(samples)).numpy()
    return played


def frames_stream(rows: Sequence[Frames], step: int, limit: int) -> tuple[Stream, int]:
    """Frames of several sounds as one stream, and their number.

    Args:
        rows: [T, F] each.
        step: The grid is as wide as the longest, rounded up to a multiple of this,
        limit: though not beyond this.
    """
    grid = Grid(rows, step, limit)
    layout = grid.layout()
    layout.lengths = grid.lengths
    return Stream({FRAMES: grid.fill_vectors(rows)}, layout), grid.tokens
