"""What a task is: it turns files into examples, gives a model its head, and scores and answers.

One file in this folder adds a task. The order in which a run calls it:

    read -> learn -> targets -> examples -> (training) -> infer -> metrics, and decode to predict
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np

from tencentpretrain.config import ComponentConfig, ConfigError
from tencentpretrain.data.checksum import file_checksum
from tencentpretrain.data.packing import Integers
from tencentpretrain.errors import DataError
from tencentpretrain.model import Model, ModelConfig
from tencentpretrain.registry import Registry
from tencentpretrain.targets.base import TargetConfig
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.types import Batch, ModelOutput, TargetOutput

R = TypeVar("R")
E = TypeVar("E", bound="TaskExamples")


class TaskConfig(ComponentConfig):
    """What all tasks have."""


@dataclass(frozen=True)
class Inputs:
    """What examples are made for.

    Args:
        model: The whole model, the heads of the task included.
        tokenizer: Of the model; None where it reads no text.
    """

    model: ModelConfig
    tokenizer: Tokenizer | None

    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer, for tasks that read text.

        Raises:
            DataError: if the model comes without one.
        """
        if self.tokenizer is None:
            raise DataError(
                "this task reads text, but there is no tokenizer; where init=none, choose one with "
                "tokenizer=wordpiece (or another kind) and tokenizer.vocab=FILE"
            )
        return self.tokenizer


class TaskExamples(ABC):
    """Examples of one file, encoded once, so that no epoch reads or tokenises again.

    A row of the file may be several examples (windows of a long text, choices); then the class
    also knows which belong together.
    """

    is_labelled: bool
    """Whether the examples have what a loss and scores need."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def make(self, epoch: int, index: int) -> Any:
        """Example number `index`; the same in all epochs, unless `vary` was called."""

    @abstractmethod
    def collate(self, examples: list[Any]) -> Batch:
        """Put examples together, on the CPU; padding goes to the longest of them."""

    def vary(self, seed: int) -> None:  # noqa: B027 - only some examples can
        """Make examples differ between epochs, as `seed` says; called for those to train on."""

    def sizes(self) -> Integers:
        """Cost [N] of each example, such as its length: evaluation puts similar ones together."""
        return np.zeros(len(self), np.int64)


class Task(ABC, Generic[R, E]):
    """Everything that differs between one fine-tuning and another.

    `R` is what the task reads rows of a file as, `E` the examples that it makes of them.

    Args:
        config: An instance of the class's `Config`.
    """

    Config: ClassVar[type[TaskConfig]] = TaskConfig
    heads: ClassVar[tuple[str, ...]]
    """Names of the targets that the task gives a model."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Parts of a model that the task has no use for, such as the decoder; they are left out."""
    decided: ClassVar[tuple[str, ...]] = ("classes",)
    """Keys of the heads that the data decides, whatever the file of a new model says."""
    score: str = "accuracy"
    """The metric that decides which checkpoint is the best."""
    mode: ClassVar[Literal["min", "max"]] = "max"
    """Whether small or great scores are good."""
    is_uniform: ClassVar[bool] = True
    """Whether all batches take one way through the model, so that processes that cut its parameters
    may compute different ones at a time."""
    details: ClassVar[tuple[str, ...]] = ()
    """Columns of the predictions that go beyond the answer."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.name: str = config.name

    def inherit(self, learned: Mapping[str, Any]) -> None:
        """Take over how inputs were prepared in an earlier fine-tuning of the model.

        Args:
            learned: The state of its task, which may be another one; empty where there was none.
        """

    @abstractmethod
    def read(self, path: Path, needs_labels: bool) -> list[R]:
        """Rows of a file, at least one.

        Raises:
            DataError: naming file and line of what is missing or cannot be read.
        """

    @abstractmethod
    def learn(self, rows: Sequence[R]) -> None:
        """Learn from all rows to train on what a model must know of the data, such as its labels.

        Raises:
            DataError: if nothing can be learned from them.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What was learned, as plain values; it is saved with the run."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""

    @abstractmethod
    def targets(self, model: ModelConfig) -> dict[str, TargetConfig]:
        """Configs of the `heads` for a model that was `model` before.

        Raises:
            ConfigError: if such a model cannot do the task.
        """

    def adopt(self, model: ModelConfig) -> None:
        """Do the task with `model` as it is, although it was not fine-tuned for it.

        Raises:
            ConfigError: if it cannot; most tasks must be learned.
        """
        raise ConfigError.at(
            "task", f"cannot be {self.name}: a model must be fine-tuned for that by finetune/run.py"
        )

    def ties(self, model: ModelConfig) -> dict[str, str]:
        """Parameters of the heads that are one with others of the model."""
        return {}

    @abstractmethod
    def examples(self, rows: Sequence[R], inputs: Inputs, is_labelled: bool) -> E:
        """Examples of `rows`; `is_labelled` says whether their labels are used.

        Raises:
            DataError: naming file and line of a label that was not learned.
        """

    def infer(
        self, model: Model, batch: Batch, is_labelled: bool
    ) -> tuple[TargetOutput | None, list[Any]]:
        """Losses of `batch`, where it has labels, and the output for each of its examples."""
        out = model.encode(batch)
        return model.target(out, batch) if is_labelled else None, self.outputs(model, out, batch)

    @abstractmethod
    def outputs(self, model: Model, out: ModelOutput, batch: Batch) -> list[Any]:
        """What `metrics` and `decode` need of each example of `batch`, off the device.

        Arrays of numpy, or plain JSON data: processes hand them to the first one.
        """

    @abstractmethod
    def metrics(self, examples: E, outputs: Sequence[Any]) -> dict[str, float]:
        """Scores by name over all labelled `examples`, whose `outputs` are in the same order."""

    @abstractmethod
    def decode(
        self, rows: Sequence[R], examples: E, outputs: Sequence[Any]
    ) -> Iterable[dict[str, Any]]:
        """One answer for each of `rows`, in their order, as plain values by column."""

    @abstractmethod
    def has_labels(self, rows: Sequence[R]) -> bool:
        """Whether `rows`, read without needing labels, have them."""

    def key(self, row: R) -> str:
        """Rows with equal keys are held out together; keys should not hold the label."""
        return repr(row)

    def fingerprint(self, path: Path) -> str:
        """What tells the content of a file from that of another."""
        return file_checksum(path)


TASKS: Registry[Task[Any, Any]] = Registry("task", "tencentpretrain.tasks")
