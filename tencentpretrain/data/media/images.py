"""Pictures out of encoded bytes: whatever a file holds becomes 8-bit red, green and blue.

Imported by worker processes of `preprocess.py`: nothing here may import torch.
"""

from __future__ import annotations

import io
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tencentpretrain.errors import DataError

Pixels = NDArray[np.uint8]

MAX_PIXELS: Final = Image.MAX_IMAGE_PIXELS or 1 << 26
"""A file that says it holds more is refused unread: a few bytes can ask for all memory."""
GREYS: Final = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of one channel with 16 bits."""


def decode_image(data: bytes) -> Pixels:
    """Pixels [H, W, 3] of an encoded image, turned as its EXIF orientation says.

    What a file is, its bytes tell, not its name; of an animation the first picture counts. As in
    torchvision's ImageFolder and the processors of `transformers`, transparency is dropped.

    Raises:
        DataError: if it is empty, no image, truncated, damaged or too large.
    """
    if not data:
        raise DataError("the image file is empty; copy it again or leave it out")
    with warnings.catch_warnings():
        # What pillow only warns of is either refused below or changes no pixel.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                _check_size(*image.size)
                ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(
                "the file holds no image that can be read; give JPEG, PNG, WebP or another format "
                "that pillow knows"
            ) from error
        except Image.DecompressionBombError as error:
            raise DataError(f"the image is too large ({error}); shrink it") from error
        except Exception as error:  # parsers of damaged files stumble over anything
            reason = str(error) or type(error).__name__
            raise DataError(
                f"the image is damaged or cut ({reason}); copy it again or leave it out"
            ) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"the image has {width} x {height} pixels, but at most {MAX_PIXELS:,} are read; shrink "
            "it"
        )


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode == "RGB":
        return np.array(image)
    if image.mode in GREYS:
        # Pillow would cut 16 bits off at 255, which makes nearly every picture white.
        high = (np.array(image).clip(0, 0xFFFF) >> 8).astype(np.uint8)
        return np.repeat(high[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError("the image holds floating-point numbers; save it with 8 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
