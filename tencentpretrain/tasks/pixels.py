"""What tasks on images share: keys, finding bad files, and pixels as in the model's training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.media.examples import decoded
from tencentpretrain.data.media.lists import MediaEntry
from tencentpretrain.data.media.records import find_media, read_entry
from tencentpretrain.data.media.transforms import ImageTransformConfig
from tencentpretrain.errors import DataError
from tencentpretrain.layers.convolution import COLOURS
from tencentpretrain.model_config import ModelConfig
from tencentpretrain.sizes import Patches
from tencentpretrain.tasks.base import TaskConfig

KEY: Final = "task.transform"
TRANSFORM: Final = "transform"
"""Key of objectives, and of what a task learned."""
PREPARING: Final = ("resize", "mean", "std", "interpolation")
"""Keys beside the size that say what pixels of an image are, and not how they vary in training."""


class ImageTaskConfig(TaskConfig):
    """Keys of tasks that read images."""

    path_column: str = "path"
    """Column or key of a list that holds the path of the image, from the list's folder on; a list
    without names of columns has the path last."""
    label_column: str = "label"
    """Column or key of a list that holds the label."""
    check_files: bool = True
    """Decode every image once before anything is trained or predicted, to find bad ones."""


def read_images(corpus: CorpusConfig, decodes: bool) -> list[MediaEntry]:
    """All images of a corpus, each row of a list once.

    Args:
        corpus: Where they lie.
        decodes: Whether every file is decoded once, to find bad ones.

    Raises:
        DataError: naming what is missing or cannot be read or decoded.
    """
    rows = list(find_media(corpus, Counter()))
    known: set[tuple[str, int | None]] = set()
    for row in rows:
        file = row.path, row.offset
        if file in known:
            continue
        known.add(file)
        if row.size is None or decodes:
            decoded(read_entry(row), row.where)
    return rows


def images_fingerprint(corpus: CorpusConfig) -> str:
    """Over names, sizes, labels and texts of a corpus; the content of its files is not read."""
    found = sha256()
    for row in find_media(corpus, Counter()):
        found.update(f"{row.name}\t{row.size}\t{row.label}\t{row.text}\n".encode())
    return found.hexdigest()


def require_labels(rows: Sequence[MediaEntry], column: str) -> None:
    """Refuse images without a label.

    Raises:
        DataError: naming the first one.
    """
    for row in rows:
        if not row.label:
            raise DataError(
                f"{row.where} has no label; put images into folders of classes, or list them with "
                f"a column `{column}`"
            )


def saved_transform(state: Mapping[str, Any]) -> ImageTransformConfig | None:
    """What a task's state says of its transform; None where it was told of no images."""
    given = state.get(TRANSFORM)
    return None if given is None else decode(ImageTransformConfig, given, TRANSFORM)


def choose_transform(
    given: ImageTransformConfig | None,
    inherited: ImageTransformConfig | None,
    model: ModelConfig,
    patches: Patches | None,
    *,
    is_varied: bool = False,
) -> ImageTransformConfig:
    """The transform of a task.

    Args:
        given: Keys of the config; those that are not set there are as in earlier training.
        inherited: Of an earlier fine-tuning, if there was one.
        model: What reads the pixels, with the objective of its training, if that is known.
        patches: What it cuts them into; None if it reads none.
        is_varied: Whether images vary as in earlier training where nothing is given.

    Raises:
        ConfigError: if the model reads no images, or of another size than is given.
    """
    told = inherited or getattr(model.objective, TRANSFORM, None)
    if patches is None:
        raise ConfigError.at("model", "must read images, but none of its embeddings does")
    size = patches.rows * patches.size[0]
    plain: dict[str, Any] = {"size": size}
    if isinstance(told, ImageTransformConfig):
        content = told.to_dict()
        plain = {name: content[name] for name in (content if is_varied else PREPARING)} | plain
        if told.resize is not None:
            plain["resize"] = max(size, round(told.resize * size / told.size))
    if given is not None:
        content = given.to_dict()
        plain |= {name: content[name] for name in given.model_fields_set}
    chosen = decode(ImageTransformConfig, plain, KEY)
    _check_size(chosen.size, patches)
    return chosen


def _check_size(size: int, patches: Patches) -> None:
    """Refuse images of another size than a model reads."""
    wanted = patches.rows * patches.size[0], patches.columns * patches.size[1]
    if wanted[0] != wanted[1] or patches.channels != COLOURS:
        raise ConfigError.at(
            "model.embedding.parts.patch",
            f"reads images of {patches.channels} x {wanted[0]} x {wanted[1]} (channels, height, "
            f"width), but tasks make squares of {COLOURS} channels",
        )
    if size != wanted[0]:
        raise ConfigError.at(
            f"{KEY}.size", f"must be {wanted[0]}, as the model reads, but is {size}"
        )
