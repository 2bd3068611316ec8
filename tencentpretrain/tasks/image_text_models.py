"""Models that compare images with texts: which target does so, and what reads the images."""

from __future__ import annotations

from tencentpretrain.config import ConfigError
from tencentpretrain.data.objectives.image_text import IMAGE, TEXT
from tencentpretrain.model import ModelConfig
from tencentpretrain.sizes import Patches
from tencentpretrain.targets.base import TargetConfig
from tencentpretrain.targets.classify import ClassifyTarget
from tencentpretrain.targets.contrast import ContrastTarget
from tencentpretrain.tasks.image_text_rows import CONTRAST, MATCH


def find_head(model: ModelConfig) -> str:
    """Name of the target that compares images with texts.

    Raises:
        ConfigError: if the model has none.
    """
    contrast = model.target.get(CONTRAST)
    if isinstance(contrast, ContrastTarget.Config) and set(contrast.streams) == {TEXT, IMAGE}:
        return CONTRAST
    if contrast is None and TEXT not in model.towers and IMAGE in model.towers:
        return CONTRAST
    if MATCH in model.target or any(
        part.name == "concat" for part in model.embedding.parts.values()
    ):
        return MATCH
    raise ConfigError.at(
        "model",
        f"must compare images with texts, by a target `{CONTRAST}` of the streams {TEXT} and "
        f"{IMAGE} such as clip/base_32, or by `{MATCH}` such as vilt/base",
    )


def new_head(name: str, model: ModelConfig) -> TargetConfig:
    """That of a model which has none yet."""
    if name == MATCH:
        return ClassifyTarget.Config(name="classify", classes=2)
    is_causal = getattr(model.encoder, "mask", None) == "causal"
    return ContrastTarget.Config(
        name=CONTRAST,
        streams=(TEXT, IMAGE),
        pooling="last" if is_causal else "first",
        other_pooling="first",
        size=model.hidden,
    )


def read_patches(model: ModelConfig, head: str) -> Patches | None:
    """What the images are cut into that go with the target `head`."""
    tower = model.towers.get(IMAGE) if head == CONTRAST else None
    return (model if tower is None else tower).embedding.patches
