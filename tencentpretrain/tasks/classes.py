"""What tasks share that give each row one of the labels of the training data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.packing import Integers
from tencentpretrain.errors import DataError
from tencentpretrain.model import Model
from tencentpretrain.tasks.base import Task, TaskExamples
from tencentpretrain.tasks.labels import LabelSet
from tencentpretrain.tasks.metrics import accuracy, macro_f1
from tencentpretrain.types import Batch, ModelOutput

HEAD = "classify"

R = TypeVar("R")


class ClassExamples(TaskExamples):
    """Examples with one label each.

    Args:
        labels: [N] numbers of the labels; None without labels.
    """

    def __init__(self, labels: Integers | None) -> None:
        self.labels = labels
        self.is_labelled = labels is not None


C = TypeVar("C", bound=ClassExamples)


class ClassTask(Task[R, C]):
    """Learns the labels of the training data."""

    heads = (HEAD,)
    details = ("probabilities",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.labels = LabelSet(())

    def learn_labels(self, labels: Iterable[str], where: object) -> None:
        """Learn all `labels` of the training data `where`.

        Raises:
            DataError: if they are all the same.
        """
        self.labels = LabelSet.sorted(labels)
        if len(self.labels) < 2:
            raise DataError(
                f"all rows of {where} have the label `{self.labels.names[0]}`; give training data "
                "with at least two labels"
            )

    def state(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.labels = LabelSet(state["labels"])

    def outputs(self, model: Model, out: ModelOutput, batch: Batch) -> list[NDArray[np.float32]]:
        """Probabilities [classes] of each row."""
        logits = model.target[HEAD].logits(out, batch)
        return list(logits.float().softmax(-1).cpu().numpy())

    def metrics(self, examples: C, outputs: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        assert examples.labels is not None
        predicted = np.stack(outputs).argmax(1)
        return {
            "accuracy": accuracy(examples.labels, predicted),
            "f1": macro_f1(examples.labels, predicted),
        }

    def decode(
        self, rows: Sequence[R], examples: C, outputs: Sequence[NDArray[np.float32]]
    ) -> Iterator[dict[str, Any]]:
        """The likeliest label of each row, its probability, and those of all labels."""
        for probabilities in outputs:
            yield class_answer(self.labels, probabilities)


def class_answer(labels: LabelSet, probabilities: NDArray[np.float32]) -> dict[str, Any]:
    """The likeliest of `labels`, its probability, and those of all."""
    values, best = probabilities.tolist(), int(probabilities.argmax())
    return {
        "label": labels.names[best],
        "probability": values[best],
        "probabilities": dict(zip(labels, values, strict=True)),
    }
