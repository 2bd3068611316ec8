"""Classification: one label for a text or a pair of texts (sentiment, topic, entailment, ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tencentpretrain.data.objectives.base import Example
from tencentpretrain.data.packing import Integers
from tencentpretrain.model import ModelConfig
from tencentpretrain.targets.base import TargetConfig
from tencentpretrain.targets.classify import ClassifyTarget
from tencentpretrain.tasks.base import TASKS, Inputs
from tencentpretrain.tasks.classes import HEAD, ClassExamples, ClassTask
from tencentpretrain.tasks.labels import label_of
from tencentpretrain.tasks.table import Row, read_table
from tencentpretrain.tasks.text import RowFormat, TextConfig, TextRows, check_length
from tencentpretrain.types import Batch, Labels


class ClassifyExamples(ClassExamples):
    """One example a row.

    Args:
        rows: Encoded texts.
        labels: [N] numbers of the labels; None without labels.
    """

    def __init__(self, rows: TextRows, labels: Integers | None) -> None:
        super().__init__(labels)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def make(self, epoch: int, index: int) -> Example:
        example = self.rows.make(index)
        if self.labels is not None:
            example["label"] = self.labels[index : index + 1]
        return example

    def collate(self, examples: list[Example]) -> Batch:
        batch = Batch({"src": self.rows.stream(examples)})
        batch.tokens = sum(len(example["ids"]) for example in examples)
        if self.is_labelled:
            labels = np.concatenate([example["label"] for example in examples])
            batch.labels[HEAD] = Labels(torch.from_numpy(labels))
        return batch

    def sizes(self) -> Integers:
        return self.rows.ids.lengths


@TASKS.register("classify")
class ClassifyTask(ClassTask[Row, ClassifyExamples]):
    """Learns the labels of the training data; rows with two texts are read as pairs."""

    class Config(TextConfig):
        text_b_column: str | None = "text_b"
        """Name of the column with the second text of a pair, used if the file has it; or null."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.is_pair: bool | None = None

    def read(self, path: Path, needs_labels: bool) -> list[Row]:
        config = self.config
        required = [config.text_a_column]
        optional: list[str] = []
        (required if needs_labels else optional).append(config.label_column)
        if config.text_b_column is not None and self.is_pair is not False:
            (required if self.is_pair else optional).append(config.text_b_column)
        return read_table(path, required, optional)

    def learn(self, rows: Sequence[Row]) -> None:
        second = self.config.text_b_column
        self.is_pair = second is not None and second in rows[0]
        labels = (label_of(row, self.config.label_column) for row in rows)
        self.learn_labels(labels, rows[0].path)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "is_pair": self.is_pair}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.is_pair = state["is_pair"]

    def targets(self, model: ModelConfig) -> dict[str, TargetConfig]:
        check_length(self.config.length, model)
        # Where positions see only the past, the last one alone has read the whole row.
        is_causal = getattr(model.encoder, "mask", None) == "causal"
        head = ClassifyTarget.Config(
            name=HEAD,
            classes=len(self.labels),
            pooling="last" if is_causal else "first",
            dropout=0.1,
        )
        return {HEAD: head}

    def examples(self, rows: Sequence[Row], inputs: Inputs, is_labelled: bool) -> ClassifyExamples:
        labels = None
        if is_labelled:
            column = self.config.label_column
            numbers = [self.labels.number(label_of(row, column), row.where) for row in rows]
            labels = np.array(numbers, np.int64)
        texts = [row[self.config.text_a_column] for row in rows]
        text_format = RowFormat(inputs, self.config.length)
        if not self.is_pair:
            return ClassifyExamples(text_format.singles(texts), labels)
        second = self.config.text_b_column
        assert second is not None
        return ClassifyExamples(text_format.pairs(texts, [row[second] for row in rows]), labels)

    def has_labels(self, rows: Sequence[Row]) -> bool:
        return self.config.label_column in rows[0]

    def key(self, row: Row) -> str:
        return "\t".join(
            row[name]
            for name in (self.config.text_a_column, self.config.text_b_column)
            if name is not None and name in row
        )
