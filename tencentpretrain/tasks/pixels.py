"""How tasks make the pixels of images: as in the training of their model until now."""

from __future__ import annotations

from typing import Any, Final

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.media.transforms import ImageTransformConfig
from tencentpretrain.model_config import ModelConfig
from tencentpretrain.sizes import Patches

KEY: Final = "task.transform"
PREPARING: Final = ("resize", "mean", "std", "interpolation")
"""Keys beside the size that say what pixels of an image are, and not how they vary in training."""


def choose_transform(
    given: ImageTransformConfig | None,
    inherited: ImageTransformConfig | None,
    model: ModelConfig,
    patches: Patches,
    *,
    is_over: bool = False,
) -> ImageTransformConfig:
    """The transform of a task.

    Args:
        given: Keys of the config; those that are not set there are as in earlier training.
        inherited: Of an earlier fine-tuning, if there was one.
        model: What reads the pixels, with the objective of its training, if that is known.
        patches: What it cuts them into.
        is_over: Whether the config may be that of the run which `inherited` is of.

    Raises:
        ConfigError: if the model reads images of another size than is given.
    """
    told = inherited or getattr(model.objective, "transform", None)
    size = patches.rows * patches.size[0]
    plain: dict[str, Any] = {"size": size}
    if isinstance(told, ImageTransformConfig):
        plain |= {name: getattr(told, name) for name in PREPARING}
        if told.resize is not None:
            plain["resize"] = max(size, round(told.resize * size / told.size))
    if given is not None:
        content, usual = given.to_dict(), ImageTransformConfig().to_dict()
        # The config of a run that is over has all keys, those that were not given as they usually
        # are; what they became, the run says.
        plain |= {
            name: content[name]
            for name in given.model_fields_set
            if not is_over or content[name] != usual[name]
        }
    chosen = decode(ImageTransformConfig, plain, KEY)
    check_size(chosen.size, patches)
    return chosen


def check_size(size: int, patches: Patches | None) -> None:
    """Refuse images of another size than a model reads.

    Raises:
        ConfigError: naming both.
    """
    if patches is None:
        raise ConfigError.at("model", "must read images, but none of its embeddings does")
    wanted = patches.rows * patches.size[0], patches.columns * patches.size[1]
    if (size, size) != wanted:
        raise ConfigError.at(
            f"{KEY}.size", f"must be {wanted[0]}, as the model reads, but is {size}"
        )
