"""Finding the text of an image and the image of a text, and classes by their names alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tencentpretrain.config import ConfigError, check
from tencentpretrain.data.corpora import CorpusConfig, FieldsConfig
from tencentpretrain.data.media.lists import MediaEntry
from tencentpretrain.data.media.transforms import ImageTransformConfig
from tencentpretrain.data.objectives.image_text import IMAGE, TEXT
from tencentpretrain.errors import DataError
from tencentpretrain.model import Model, ModelConfig
from tencentpretrain.model_config import parts_of
from tencentpretrain.targets.base import TargetConfig
from tencentpretrain.targets.contrast import ContrastTarget
from tencentpretrain.tasks.base import TASKS, Inputs, Task
from tencentpretrain.tasks.classes import class_answer
from tencentpretrain.tasks.image_text_models import find_head, new_head, read_patches
from tencentpretrain.tasks.image_text_rows import (
    CONTRAST,
    MATCH,
    Collection,
    ImageTextExamples,
    JointExamples,
    TowerExamples,
)
from tencentpretrain.tasks.labels import LabelSet
from tencentpretrain.tasks.pixels import (
    ImageTaskConfig,
    choose_transform,
    images_fingerprint,
    read_images,
    require_labels,
    saved_transform,
)
from tencentpretrain.tasks.ranking import first_ranks, recalls
from tencentpretrain.tasks.text import RowFormat
from tencentpretrain.types import Batch, ModelOutput, TargetOutput

log = logging.getLogger("tencentpretrain")


@TASKS.register("image_text_retrieve")
class ImageTextTask(Task[MediaEntry, ImageTextExamples]):
    """Images and their captions; with templates, images and the names of their classes.

    Models with two towers (CLIP) compare vectors. Models that read both in one row (ViLT) read each
    image with each text, which is for small files only.
    """

    class Config(ImageTaskConfig):
        length: Annotated[int, Field(ge=8)] | None = None
        """Greatest length of a text, in tokens, special tokens included; longer ones are cut. Null
        is as in the model's pre-training."""
        transform: ImageTransformConfig | None = None
        """How images become pixels; keys that are not given are as in the model's training, the
        size as the model reads."""
        templates: list[str] = []
        """Texts for a class, such as `a photo of a {label}`; several are averaged. Images then are
        classified, and have the labels of their folders or lists instead of texts."""
        labels: list[str] = []
        """Names of the classes; none takes those of the data."""
        text_column: str = "text"
        """Column or key of a list that holds the caption."""

        @check("templates")
        def _have_a_place(self) -> str | None:
            wrong = [template for template in self.templates if "{label}" not in template]
            return f"templates must hold {{label}}, but `{wrong[0]}` does not" if wrong else None

        @check("templates", "labels")
        def _labels_have_templates(self) -> str | None:
            return "labels need templates" if self.labels and not self.templates else None

    config: Config
    is_uniform = False
    heads = (CONTRAST, MATCH)
    details = ("probabilities",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.labels = LabelSet(config.labels)
        self.length: int | None = None
        self.transform: ImageTransformConfig | None = None
        self.score = "accuracy" if config.templates else "recall"

    def inherit(self, learned: Mapping[str, Any]) -> None:
        self.length, self.transform = learned.get("length"), saved_transform(learned)

    def read(self, path: Path, needs_labels: bool) -> list[MediaEntry]:
        rows = read_images(self._corpus(path), self.config.check_files)
        if needs_labels and self.config.templates:
            require_labels(rows, self.config.label_column)
        return rows

    def learn(self, rows: Sequence[MediaEntry]) -> None:
        if self.config.templates and not self.labels:
            self.labels = LabelSet.sorted(row.label for row in rows)
        if self.config.templates and len(self.labels) < 2:
            raise DataError(
                f"all images have the label `{self.labels.names[0]}`; give training data with at "
                "least two"
            )

    def state(self) -> dict[str, Any]:
        assert self.transform is not None
        return {
            "labels": list(self.labels),
            "length": self.length,
            "transform": self.transform.to_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.labels = LabelSet(self.config.labels or state["labels"])
        self.length, self.transform = int(state["length"]), saved_transform(state)

    def targets(self, model: ModelConfig) -> dict[str, TargetConfig]:
        self.adopt(model)
        name = find_head(model)
        head = model.target.get(name)
        if not isinstance(head, TargetConfig):
            head = new_head(name, model)
        if getattr(head, "classes", 2) < 2:
            raise ConfigError.at(
                "model.target.match.classes",
                "must be 2 to be trained; with 1 a model can only answer, by finetune/predict.py",
            )
        return {name: head}

    def adopt(self, model: ModelConfig) -> None:
        keys, objective, head = self.config, model.objective, find_head(model)
        told = self.transform or getattr(objective, "transform", None)
        if keys.transform is None and told is None:
            message = "must be given, since the model was not pre-trained on images with texts here"
            raise ConfigError.at("task.transform", message)
        patches = read_patches(model, head)
        self.transform = choose_transform(keys.transform, told, model, patches, is_varied=True)
        tables = [getattr(p, "length", None) for _, p in parts_of("embedding", model.embedding)]
        longest = min((n for n in tables if isinstance(n, int)), default=None)
        learned = self.length or getattr(objective, "length", longest) or 77
        self.length = keys.length or learned
        if longest is not None and self.length > longest:
            message = f"must be at most {longest}, as the model has positions, but is {self.length}"
            raise ConfigError.at("task.length", message)

    def examples(
        self, rows: Sequence[MediaEntry], inputs: Inputs, is_labelled: bool
    ) -> ImageTextExamples:
        # What was learned, and keys that are given in its place to predict.
        self.adopt(inputs.model)
        assert self.transform is not None
        assert self.length is not None
        kind = TowerExamples if find_head(inputs.model) == CONTRAST else JointExamples
        collection = self._collection(rows, is_labelled)
        texts = RowFormat(inputs, self.length).singles(collection.texts)
        return kind(collection, texts, self.transform, is_labelled)

    def _collection(self, rows: Sequence[MediaEntry], is_labelled: bool) -> Collection:
        templates = self.config.templates
        if not templates:
            return Collection.of_captions(rows)
        if not self.labels:
            if not is_labelled:
                raise ConfigError.at("task.labels", "must be given: the images have none")
            self.learn(rows)
        numbers = [self.labels.number(r.label, r.where) if is_labelled else -1 for r in rows]
        return Collection.of_classes(rows, numbers, self.labels.names, templates)

    def infer(
        self, model: Model, batch: Batch, is_labelled: bool
    ) -> tuple[TargetOutput | None, list[Any]]:
        """No losses: those depend on what shares a batch."""
        out = model.encode(batch)
        return None, self.outputs(model, out, batch)

    def outputs(self, model: Model, out: ModelOutput, batch: Batch) -> list[Any]:
        """Vectors [P] of images, divided by the temperature, and of texts; or scores of pairs."""
        if CONTRAST not in model.target.names:
            logits = model.target[MATCH].logits(out, batch).float()
            scores = logits[:, -1] - (logits[:, 0] if logits.shape[1] > 1 else 0)
            return scores.tolist()
        target, vectors = model.target[CONTRAST], list[NDArray[np.float32]]()
        assert isinstance(target, ContrastTarget)
        for name in (IMAGE, TEXT):
            if name in out.encoded:
                found = target.vector(out.encoded[name], name)
                vectors += list((found * target.scale() if name == IMAGE else found).cpu().numpy())
        return vectors

    def metrics(self, examples: ImageTextExamples, outputs: Sequence[Any]) -> dict[str, float]:
        scores, relevant = examples.scores(outputs), examples.collection.relevant()
        found = recalls(first_ranks(scores, relevant))
        if self.config.templates:
            return {"accuracy": found["recall@1"], "top_5": found["recall@5"]}
        back = recalls(first_ranks(scores.T, relevant.T))
        return {
            "recall": (found["recall@1"] + back["recall@1"]) / 2,
            **{f"text_{name}": value for name, value in found.items()},
            **{f"image_{name}": value for name, value in back.items()},
        }

    def decode(
        self, rows: Sequence[MediaEntry], examples: ImageTextExamples, outputs: Sequence[Any]
    ) -> Iterator[dict[str, Any]]:
        """Of each row the likeliest label; or how far down image and text find each other."""
        scores, collection = examples.scores(outputs), examples.collection
        if self.config.templates:
            yield from self._classes(rows, scores)
            return
        relevant = collection.relevant()
        of_image, of_text = first_ranks(scores, relevant), first_ranks(scores.T, relevant.T)
        for row, (image, text) in zip(rows, collection.pairs.tolist(), strict=True):
            yield {
                "path": row.name,
                "text": row.text,
                "text_rank": int(of_image[image]) + 1,
                "image_rank": int(of_text[text]) + 1,
                "found_text": collection.texts[int(scores[image].argmax())],
                "found_image": collection.images[int(scores[:, text].argmax())].name,
            }

    def _classes(
        self, rows: Sequence[MediaEntry], scores: NDArray[np.float32]
    ) -> Iterator[dict[str, Any]]:
        powers = np.exp(scores - scores.max(1, keepdims=True))
        shares = powers / powers.sum(1, keepdims=True)
        for row, values in zip(rows, shares, strict=True):
            yield {"path": row.name, **class_answer(self.labels, values)}

    def has_labels(self, rows: Sequence[MediaEntry]) -> bool:
        return not self.config.templates or all(row.label for row in rows)

    def key(self, row: MediaEntry) -> str:
        # All captions of an image are held out together.
        return row.name

    def fingerprint(self, path: Path) -> str:
        return images_fingerprint(self._corpus(path))

    def _corpus(self, path: Path) -> CorpusConfig:
        keys = self.config
        names = {"path": keys.path_column, "text": keys.text_column, "label": keys.label_column}
        kind = "image" if keys.templates else "image_text"
        return CorpusConfig(path=str(path), format=kind, fields=FieldsConfig(**names))
