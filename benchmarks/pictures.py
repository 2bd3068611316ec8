"""A picture for the docs of what a model hears: `python -m benchmarks.pictures OUTPUT SOUND...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.config import decode
from tencentpretrain.data.media.filter_banks import FilterBank, FilterBankConfig, Frames
from tencentpretrain.data.media.hearing import Hearing, VariationConfig
from tencentpretrain.data.order import generator
from tencentpretrain.generate.pictures import grid_of

Pixels = NDArray[np.uint8]

SCALE: Final = 5
"""Pixels for each band and each frame, along a side."""
DEEPEST: Final = 3.0
"""Deviations from the mean that are black, and white on the other side."""


def frames(output: Path, sounds: list[Path]) -> None:
    """Filter banks of sounds behind one another; below them as two epochs of training have them."""
    config = decode(VariationConfig, {"augment": {"policy": "sm"}})
    hearing = Hearing(FilterBank(FilterBankConfig(rate=8000, bands=40)), config)
    data = [sound.read_bytes() for sound in sounds]
    rows = [np.concatenate([hearing(sound) for sound in data])]
    for epoch in (0, 1):
        varied = [hearing(sound, generator(0, epoch, n)) for n, sound in enumerate(data)]
        rows.append(np.concatenate(varied))
    output.write_bytes(grid_of(np.stack([_grey(row) for row in rows]), 1))


def _grey(values: Frames) -> Pixels:
    """An image [H, W, 3] of frames [T, F], the highest band on top."""
    levels = ((values.T[::-1] / DEEPEST).clip(-1, 1) + 1) * 127.5
    return np.repeat(levels.astype(np.uint8).repeat(SCALE, 0).repeat(SCALE, 1)[..., None], 3, 2)


if __name__ == "__main__":
    target, *files = map(Path, sys.argv[1:])
    frames(target, files)
