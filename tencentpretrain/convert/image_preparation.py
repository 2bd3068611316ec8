"""How images become pixels, as `transformers` keeps it beside a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.preparation import Preparation
from tencentpretrain.errors import CheckpointError

RESAMPLING: Final = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow and our names."""
HALVES: Final = (0.5, 0.5, 0.5)


def image_preparation(processor: str, resampling: int = 2) -> Preparation:
    """Preparation of a family whose class of `transformers` is `processor`.

    Args:
        processor: Name of the class.
        resampling: What it takes where its file does not say.
    """

    def to_ours(settings: Settings) -> dict[str, Any]:
        return {"transform": _transform(settings, resampling)}

    def to_theirs(told: Mapping[str, Any]) -> dict[str, Any]:
        transform = told.get("transform")
        return {} if transform is None else _content(transform, processor)

    return Preparation(to_ours, to_theirs)


def _transform(settings: Settings, resampling: int) -> dict[str, Any]:
    """Keys of our transform.

    Raises:
        CheckpointError: if theirs does what ours cannot.
    """
    settings.expect({"do_resize": True, "do_rescale": True, "do_normalize": True})
    number = settings.get("resample", resampling)
    if number not in RESAMPLING:
        raise CheckpointError(f"preprocessor_config.json: `resample` is {number}, which is unknown")
    factor = settings.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise CheckpointError(
            f"preprocessor_config.json: `rescale_factor` must be 1/255, but is {factor}"
        )
    size, resize = _size(settings)
    return {
        "size": size,
        "resize": resize,
        "interpolation": RESAMPLING[number],
        "mean": list(settings.get("image_mean", HALVES)),
        "std": list(settings.get("image_std", HALVES)),
    }


def _size(settings: Settings) -> tuple[int, int | None]:
    """Height and width of the pixels, and the shorter edge before a square is cut out."""
    size = settings.get("size", 224)
    edges = {"height": size, "width": size} if isinstance(size, int) else dict(size)
    shortest = edges.get("shortest_edge")
    cuts = settings.get("do_center_crop", shortest is not None)
    crop = settings.get("crop_size", None) if cuts else None
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    height, width = ((crop or edges).get(side) for side in ("height", "width"))
    if height is None or height != width or (shortest is None and crop not in (None, edges)):
        raise CheckpointError(
            f"preprocessor_config.json: `size` {size} and `crop_size` {crop} make no square as "
            "images are prepared here, by stretching or by cutting out the middle"
        )
    return int(height), shortest


def _content(transform: Mapping[str, Any], processor: str) -> dict[str, Any]:
    """Content of the file."""
    size, resize = transform["size"], transform.get("resize")
    square = {"height": size, "width": size}
    names = {name: number for number, name in RESAMPLING.items()}
    content: dict[str, Any] = {
        "image_processor_type": processor,
        "do_resize": True,
        "size": square if resize is None else {"shortest_edge": resize},
        "resample": names[transform.get("interpolation", "bilinear")],
        "do_center_crop": resize is not None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.get("mean", HALVES)),
        "image_std": list(transform.get("std", HALVES)),
    }
    return content | ({} if resize is None else {"crop_size": square})
