"""Models of TencentPretrain that read images: ViT and BEiT, their names and configs."""

from __future__ import annotations

from typing import Final

from tencentpretrain.convert.family import Plain
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.table import Rule, modules
from tencentpretrain.convert.transforms import Squeezed
from tencentpretrain.errors import CheckpointError

CONTENTS: Final = ("patch", "masked_patch")
"""Embeddings that read images alone."""
PROJECTION: Final = "embedding.patch.projection"
CODES: Final = "target.mlm.linear_2.weight"
PREPROCESS: Final = ["crop", "normalize"]
"""Changes of images by default; their `crop` never happens (D71)."""


def image_rules() -> tuple[Rule, ...]:
    """Names of what only models of images have; their projection of patches has no bias (D39)."""
    return (
        *modules({"embedding.patch": PROJECTION}),
        Rule(("embedding.patch.class_token",), ("embedding.patch.cls_emb",), Squeezed(dims=2)),
        Rule(("embedding.patch.mask_token",), ("embedding.patch.mask_emb",), Squeezed()),
        *modules({"embedding.patch_position": "embedding.pos.embedding"}, only=("content", 1)),
    )


def reads_images(names: list[str]) -> bool:
    """Whether an embedding of these parts reads images.

    Raises:
        CheckpointError: if it reads something else, too.
    """
    if not set(CONTENTS) & set(names):
        return False
    others = sorted(set(names) - {*CONTENTS, "pos"})
    if others:
        raise CheckpointError(
            f"the config names {', '.join(others)} beside patches, which cannot be converted"
        )
    return True


def image_parts(settings: Settings, names: list[str], length: int) -> Plain:
    """Parts of an embedding of images; `length` is that of its table of positions."""
    height, width = settings.number("image_height", 256), settings.number("image_width", 256)
    side = settings.number("patch_size", 16)
    patch = {
        "image_size": height if height == width else [height, width],
        "patch_size": side,
        "channels": settings.number("channels_num", 3),
        "bias": False,
        "class_token": True,
        "mask_token": "masked_patch" in names,
    }
    if "pos" not in names:
        return {"patch": patch}
    positions = 1 + (height // side) * (width // side)
    # Longer tables have rows that nothing reads.
    table = {"patch_position": {}} if length == positions else {"position": {"length": length}}
    return {"patch": patch, **table}


def image_transform(settings: Settings) -> Plain | None:
    """How their loader makes pixels of a whole image; None where these are not square."""
    size = settings.number("image_height", 256)
    if size != settings.number("image_width", 256):
        return None
    changes = settings.listed("image_preprocess", PREPROCESS)
    transform: Plain = {"size": size, "crop": "center", "flip": 0.0}
    if "horizontal_flip" in changes:
        transform["flip"] = 0.5
    if "normalize" in changes:
        transform["mean"] = [0.48145466, 0.4578275, 0.40821073]
        transform["std"] = [0.26862954, 0.26130258, 0.27577711]
    else:
        transform |= {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    return transform
