"""Small pictures on the disk, and what preprocess.py makes of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tencentpretrain.config import decode
from tencentpretrain.data.media.images import Pixels
from tencentpretrain.data.media.transforms import ImageTransform
from tencentpretrain.data.order import generator
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
from tencentpretrain.data.shards import ShardSet, open_shards

CLASSES = ("blue", "red")


def picture(number: int, height: int = 8, width: int = 8, channel: int | None = None) -> Pixels:
    """Noise; much brighter in one channel, if one is given."""
    pixels = generator(number).integers(0, 100, (height, width, 3), dtype=np.uint8)
    if channel is not None:
        pixels[..., channel] += 120
    return pixels


def encoded(pixels: Any, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    """Bytes of a file of a `kind` that holds `pixels`, converted to `mode`."""
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def prepared(
    transform: ImageTransform, image: Pixels, random: np.random.Generator | None = None
) -> Tensor:
    """Normalised pixels [3, H, W], as training has them where there is something to draw from."""
    return transform.normalise(transform.draw(image, random))


def class_folders(
    folder: Path, count: int = 10, size: int = 8, classes: Sequence[str] = CLASSES
) -> Path:
    """`count` PNG files in a folder for each class; their colour tells which."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = picture(1000 * place + number, size, size, channel=2 - 2 * place)
            (folder / name / f"{number:03}.png").write_bytes(encoded(pixels))
    return folder


def media_config(
    output: Path, path: object, format: str = "image", workers: int = 1, **keys: Any
) -> PreprocessConfig:
    """Keys of preprocess.py; those of the corpus begin with `corpus_`."""
    corpus = {"path": str(path), "format": format}
    corpus |= {k.removeprefix("corpus_"): keys.pop(k) for k in [*keys] if k.startswith("corpus_")}
    return decode(
        PreprocessConfig, {"corpus": corpus, "output": str(output), "workers": workers, **keys}
    )


def media_shards(output: Path, path: object, format: str = "image", **keys: Any) -> ShardSet:
    """What preprocess.py makes of the files at `path`."""
    assert run_preprocess(media_config(output, path, format, **keys)) == 0
    return open_shards(output)
