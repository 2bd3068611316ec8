"""How images become pixels, as `transformers` keeps it beside a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.preparation import Preparation, PreparationError
from tencentpretrain.errors import CheckpointError

RESAMPLING: Final = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow and our names."""
Triple = tuple[float, float, float]
AS_IT_IS: Final = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Mean and deviation that change nothing."""
HALVES: Final[Triple] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Usual:
    """What a class of `transformers` takes where its file does not say.

    Args:
        processor: Name of the class.
        resampling: How images are resized.
        mean: Subtracted from red, green and blue.
        std: Their divisor.
        cuts: Whether a number as size is that of the shorter edge, and the middle is cut out then;
            otherwise images are stretched to a square of that size (its `default_to_square`).
        size: Of images, and of what is cut out of them.
    """

    processor: str
    resampling: int = 2
    mean: Triple = HALVES
    std: Triple = HALVES
    cuts: bool = False
    size: int = 224


def image_preparation(usual: Usual) -> Preparation:
    """Preparation of a family whose class of `transformers` is that of `usual`."""

    def to_ours(settings: Settings) -> dict[str, Any]:
        return {"transform": _transform(settings, usual)}

    def to_theirs(told: Mapping[str, Any]) -> dict[str, Any]:
        transform = told.get("transform")
        return {} if transform is None else _content(transform, usual.processor)

    return Preparation(to_ours, to_theirs)


def usual_preparation(preparation: Preparation, size: int) -> dict[str, Any]:
    """Keys of our objective for a model that comes without a file, and reads images of `size`."""
    return preparation.to_ours(Settings({"size": size, "crop_size": size}))


def _transform(settings: Settings, usual: Usual) -> dict[str, Any]:
    """Keys of our transform.

    Raises:
        CheckpointError: if theirs does what ours cannot.
    """
    settings.expect({"do_resize": True, "do_rescale": True})
    number = settings.get("resample", usual.resampling)
    if number not in RESAMPLING:
        raise CheckpointError(f"preprocessor_config.json: `resample` is {number}, which is unknown")
    factor = settings.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise CheckpointError(
            f"preprocessor_config.json: `rescale_factor` must be 1/255, but is {factor}"
        )
    mean, std = (
        (value,) * 3 if isinstance(value, int | float) else value
        for value in (settings.get("image_mean", usual.mean), settings.get("image_std", usual.std))
    )
    if not settings.get("do_normalize", True):
        mean, std = AS_IT_IS
    colours = {"interpolation": RESAMPLING[number], "mean": list(mean), "std": list(std)}
    try:
        size, resize = _size(settings, usual)
    except CheckpointError as error:
        raise PreparationError(str(error), {"transform": colours}) from error
    return {"size": size, "resize": resize, **colours}


def _size(settings: Settings, usual: Usual) -> tuple[int, int | None]:
    """Height and width of the pixels, and the shorter edge before a square is cut out."""
    size = settings.get("size", usual.size)
    if isinstance(size, int):
        # Files of older versions have a number, which only the class gives a meaning.
        edges = {"shortest_edge": size} if usual.cuts else {"height": size, "width": size}
    else:
        edges = _edges(size)
    shortest = edges.get("shortest_edge")
    cuts = settings.get("do_center_crop", usual.cuts or shortest is not None)
    crop = settings.get("crop_size", usual.size if usual.cuts else None) if cuts else None
    crop = None if crop is None else _edges(crop)
    height, width = ((crop or edges).get(side) for side in ("height", "width"))
    is_stretched = shortest is None and crop in (None, edges)
    is_cut = shortest is not None and height is not None and shortest >= height
    if height is None or height != width or not (is_stretched or is_cut):
        raise CheckpointError(
            f"preprocessor_config.json: `size` {size} and `crop_size` {crop} make no square as "
            "images are prepared here, by stretching or by cutting out the middle"
        )
    return int(height), shortest


def _edges(size: int | Sequence[int] | Mapping[str, int]) -> dict[str, int]:
    """Height and width by name, however a file has them."""
    if isinstance(size, Mapping):
        return dict(size)
    return dict(
        zip(("height", "width"), [size] * 2 if isinstance(size, int) else size, strict=True)
    )


def _content(transform: Mapping[str, Any], processor: str) -> dict[str, Any]:
    """Content of the file."""
    size, resize = transform["size"], transform.get("resize")
    square = {"height": size, "width": size}
    mean, std = transform.get("mean", HALVES), transform.get("std", HALVES)
    names = {name: number for number, name in RESAMPLING.items()}
    content: dict[str, Any] = {
        "image_processor_type": processor,
        "do_resize": True,
        "size": square if resize is None else {"shortest_edge": resize},
        "resample": names[transform.get("interpolation", "bilinear")],
        "do_center_crop": resize is not None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": (tuple(mean), tuple(std)) != AS_IT_IS,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    return content | ({} if resize is None else {"crop_size": square})
