"""Whatever a file holds becomes red, green and blue, or one sentence says why it cannot."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from tencentpretrain.data.media import images
from tencentpretrain.data.media.images import decode_image
from tencentpretrain.errors import DataError
from tests.helpers.pictures import encoded, picture

SQUARE = picture(0, 12, 10)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_files_give_their_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode_image(encoded(SQUARE, kind, **options))
    assert found.dtype == np.uint8
    assert found.flags.writeable
    assert np.array_equal(found, SQUARE)


def test_jpeg_is_decoded_as_torchvision_does() -> None:
    data = encoded(picture(1, 40, 24), "JPEG", quality=90)
    reference = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    difference = decode_image(data).astype(int) - reference.permute(1, 2, 0).numpy()
    assert abs(difference).max() <= 1  # the two have their own builds of the library


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "CMYK", "I", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    value = 255 if mode in ("1", "P") else 200  # the others have every grey
    grey = np.full((6, 5), value, np.uint8)
    if mode.startswith("I"):
        data = encoded(grey.astype(np.uint16) << 8, kind)
    else:
        data = encoded(np.repeat(grey[..., None], 3, 2), kind, mode)
    found = decode_image(data)
    assert found.shape == (6, 5, 3)
    assert (found == value).all()


def test_a_palette_with_transparency_is_read_in_silence(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.fromarray(SQUARE).convert("P")
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(range(256)))
    assert np.array_equal(decode_image(file.getvalue()), np.array(image.convert("RGB")))
    assert not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image(orientation: int) -> None:
    upright = picture(3, 6, 4)
    turns = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 6: np.rot90}
    turns |= {8: lambda x: np.rot90(x, -1), 1: lambda x: x}
    turns |= {5: lambda x: x.transpose(1, 0, 2), 7: lambda x: np.rot90(x, 2).transpose(1, 0, 2)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turns[orientation](upright))
    found = decode_image(encoded(stored, "PNG", exif=exif.tobytes()))
    assert np.array_equal(found, upright)


def test_one_pixel_is_an_image() -> None:
    assert decode_image(encoded(picture(0, 1, 1))).shape == (1, 1, 3)


def test_of_an_animation_the_first_picture_counts() -> None:
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(file.getvalue()) == 10).all()


JPEG = encoded(picture(1, 64, 64), "JPEG")
PNG = encoded(picture(1, 64, 64))


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "empty"),
        (b"these are words, and no image at all", "no image"),
        (JPEG[: len(JPEG) // 2], "damaged or cut"),
        (PNG[: len(PNG) // 2], "damaged or cut"),
        (PNG[:40], "no image"),
        (JPEG[:100], "no image|damaged or cut"),
        (PNG[:50] + bytes(100) + PNG[150:], "damaged or cut"),
        (encoded(np.ones((3, 3), np.float32), "TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "half jpeg", "half png", "header", "begun", "altered", "floats"],
)
def test_bad_files_are_told_in_a_sentence(data: bytes, part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert decode_image(encoded(picture(0, 10, 10))).size == 300
    with pytest.raises(DataError, match="11 x 10 pixels, but at most 100"):
        decode_image(encoded(picture(0, 10, 11)))


def test_pillow_refuses_what_is_much_larger() -> None:
    width = 1 << 15
    head = encoded(picture(0, 1, 1), "BMP")
    huge = head[:18] + width.to_bytes(4, "little") * 2 + head[26:]
    with pytest.raises(DataError, match="shrink it"):
        decode_image(huge)
