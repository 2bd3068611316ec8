"""Image classification: one label for each image of folders, tar files or lists."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.config import ConfigError
from tencentpretrain.data.corpora import CorpusConfig, FieldsConfig
from tencentpretrain.data.media.examples import (
    Example,
    LabelledImageConfig,
    LabelledImages,
    MixedLabelsConfig,
)
from tencentpretrain.data.media.lists import MediaEntry
from tencentpretrain.data.media.records import read_entry
from tencentpretrain.data.media.transforms import ImageTransformConfig
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import Integers
from tencentpretrain.model import ModelConfig
from tencentpretrain.sizes import Patches
from tencentpretrain.targets.base import TargetConfig
from tencentpretrain.targets.classify import ClassifyTarget
from tencentpretrain.tasks.base import TASKS, Inputs
from tencentpretrain.tasks.classes import HEAD, ClassExamples, ClassTask
from tencentpretrain.tasks.pixels import (
    ImageTaskConfig,
    choose_transform,
    images_fingerprint,
    read_images,
    require_labels,
    saved_transform,
)
from tencentpretrain.types import Batch

log = logging.getLogger("tencentpretrain")


class ImageRows(ClassExamples):
    """Images of one file or folder, decoded when they are asked for.

    Args:
        rows: Where they lie.
        labels: [N] numbers of the labels; None without labels.
        config: How they become pixels.
        classes: Number of classes.
    """

    def __init__(
        self,
        rows: Sequence[MediaEntry],
        labels: Integers | None,
        config: LabelledImageConfig,
        classes: int,
    ) -> None:
        super().__init__(labels)
        self._rows = rows
        self._images = LabelledImages(config, self, classes)
        self._seed: int | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int) -> bytes:
        """Encoded bytes of an image."""
        return read_entry(self._rows[index])

    def label(self, index: int) -> int | None:
        """Number of the label of an image."""
        return None if self.labels is None else int(self.labels[index])

    def where(self, index: int) -> str:
        """What messages call an image."""
        return self._rows[index].where

    def vary(self, seed: int) -> None:
        self._seed = seed

    def make(self, epoch: int, index: int) -> Example:
        random = None if self._seed is None else generator(self._seed, epoch, index)
        return self._images.make(index, random)

    def collate(self, examples: list[Example]) -> Batch:
        return self._images.collate(examples, HEAD)


@TASKS.register("image_classify")
class ImageClassifyTask(ClassTask[MediaEntry, ImageRows]):
    """One label for each image, by the folder that it lies in or as a list says."""

    class Config(MixedLabelsConfig, ImageTaskConfig):
        transform: ImageTransformConfig | None = None
        """How images become pixels; keys that are not given are as in the model's training, the
        size as the model reads, and what only varies images as their defaults say."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._transform: ImageTransformConfig | None = None

    def inherit(self, learned: Mapping[str, Any]) -> None:
        self._transform = saved_transform(learned)

    def state(self) -> dict[str, Any]:
        assert self._transform is not None
        return {**super().state(), "transform": self._transform.to_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._transform = saved_transform(state)

    def read(self, path: Path, needs_labels: bool) -> list[MediaEntry]:
        rows = read_images(self._corpus(path), self.config.check_files)
        if needs_labels:
            require_labels(rows, self.config.label_column)
        return rows

    def learn(self, rows: Sequence[MediaEntry]) -> None:
        self.learn_labels((row.label for row in rows), "data.train")

    def targets(self, model: ModelConfig) -> dict[str, TargetConfig]:
        patches = model.embedding.patches
        if patches is None:
            raise ConfigError.at(
                "model", f"must read images for task={self.name}, such as vit/tiny"
            )
        self._transform = choose_transform(self.config.transform, self._transform, model, patches)
        head = ClassifyTarget.Config(name=HEAD, classes=len(self.labels), dense=False)
        return {HEAD: head.model_copy(update=_pooled_as_before(model, patches))}

    def examples(self, rows: Sequence[MediaEntry], inputs: Inputs, is_labelled: bool) -> ImageRows:
        labels = None
        if is_labelled:
            labels = np.array([self.labels.number(row.label, row.where) for row in rows], np.int64)
        model = inputs.model
        config = LabelledImageConfig(
            transform=choose_transform(
                self.config.transform, self._transform, model, model.embedding.patches
            ),
            mix=self.config.mix,
            smoothing=self.config.smoothing,
        )
        return ImageRows(rows, labels, config, len(self.labels))

    def decode(
        self,
        rows: Sequence[MediaEntry],
        examples: ImageRows,
        outputs: Sequence[NDArray[np.float32]],
    ) -> Iterator[dict[str, Any]]:
        """The name of each image, its likeliest label, and how probable that and all others are."""
        for row, answer in zip(rows, super().decode(rows, examples, outputs), strict=True):
            yield {"path": row.name, **answer}

    def has_labels(self, rows: Sequence[MediaEntry]) -> bool:
        return all(row.label for row in rows)

    def key(self, row: MediaEntry) -> str:
        return row.name

    def fingerprint(self, path: Path) -> str:
        return images_fingerprint(self._corpus(path))

    def _corpus(self, path: Path) -> CorpusConfig:
        fields = FieldsConfig(path=self.config.path_column, label=self.config.label_column)
        return CorpusConfig(path=str(path), format="image", fields=fields)


def _pooled_as_before(model: ModelConfig, patches: Patches) -> dict[str, Any]:
    """Keys of a classifier that reads what earlier training has made a place for the whole image.

    A class token of which no target has made anything holds nothing, as after MAE and BEiT: there,
    and without a class token, the mean of the patches stands for the image, as in what their
    authors fine-tune.
    """
    if not patches.before:
        return {"pooling": "mean"}
    # What is distilled is the target within.
    targets = {n: getattr(t, "inner", None) or t for n, t in model.target.items()}
    before = targets.get(HEAD)
    if isinstance(before, ClassifyTarget.Config):
        return {key: getattr(before, key) for key in ("pooling", "norm", "norm_eps")}
    poolings = [getattr(target, "pooling", None) for target in targets.values()]
    return {"pooling": "first" if "first" in poolings or not targets else "rest"}
