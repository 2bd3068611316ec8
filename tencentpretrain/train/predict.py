"""Prediction: a fine-tuned run and a file of rows in, a file with one answer for each row out."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Annotated, Any, Final

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    PathLike,
    SerializeAsAny,
    decode,
)
from tencentpretrain.errors import CheckpointError, DataError, before_start
from tencentpretrain.model import Model
from tencentpretrain.tasks.answers import answer_lines
from tencentpretrain.tasks.base import TASKS, Inputs, Task, TaskExamples
from tencentpretrain.tasks.inference import Machine, infer
from tencentpretrain.tools.outputs import check_file, write_lines
from tencentpretrain.tools.saved_model import ToolConfig, read_model
from tencentpretrain.train.callbacks.logging import duration
from tencentpretrain.train.finetune import TASK_FILE
from tencentpretrain.train.saved_checkpoint import Checkpoint, open_checkpoint
from tencentpretrain.train.source import saved_config, saved_task

log = logging.getLogger("tencentpretrain")

REPORT_SECONDS: Final = 10.0
"""Between two lines about the progress."""


class PredictData(Config):
    """What to predict."""

    test: PathLike
    """File with the rows, in the form of the training data; labels need not be there."""


class PredictConfig(ToolConfig):
    """Predict with a fine-tuned run, or with a model that needs no fine-tuning for its task."""

    task: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(TASKS)] = None
    """What a model does that was not fine-tuned, such as image_text_retrieve; null is what it was
    fine-tuned for. The task of a fine-tuned run may be given again, with other keys."""
    data: PredictData
    """What to predict."""
    output: PathLike
    """File for the answers, in the order of the rows: JSON lines if it ends in .jsonl, else TSV."""
    overwrite: bool = False
    """Whether output may replace a file that is there."""
    details: bool = True
    """Write all that the task knows of a row, such as the probability of each class."""


class SavedTask(Config):
    """What the config of a fine-tuned run says about its task."""

    task: Annotated[SerializeAsAny[ComponentConfig], Choice(TASKS)]
    """What the model was trained to do."""


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned model and its task, ready for files.

    Args:
        task: With what it learned.
        model: On its device.
        inputs: What examples are made for.
    """

    task: Task[Any, Any]
    model: Model
    inputs: Inputs


def run_predict(config: PredictConfig) -> int:
    """Predict as `config` says; returns the exit code."""
    with before_start():
        check_file(config.output, config.overwrite, [config.data.test])
        machine = config.machine()
        checkpoint = open_checkpoint(config.checkpoint)
        if config.task is None or TASK_FILE in checkpoint.manifest.files:
            predictor = load_predictor(checkpoint, machine, config.task)
        else:
            predictor = adopt_model(checkpoint, config.task, machine)
        task = predictor.task
        rows = task.read(config.data.test, False)
        examples = make_examples(predictor, rows)
    outputs, scores = infer(task, predictor.model, examples, machine, _Progress(len(examples)))
    left_out = () if config.details else task.details
    write_lines(
        config.output, answer_lines(config.output, task.decode(rows, examples, outputs), left_out)
    )
    log.info(f"{len(rows):,} answers are in {config.output}")
    if scores:
        log.info("  ".join(f"test/{name} {value:.4f}" for name, value in scores.items()))
    return 0


def load_predictor(
    checkpoint: Checkpoint, machine: Machine, given: ComponentConfig | None = None
) -> Predictor:
    """The model in `checkpoint` and the task that it was trained for.

    Args:
        checkpoint: Of a fine-tuned run.
        machine: How it is run.
        given: Keys of its task, in the place of those that it was trained with; what they say of
            preparing inputs counts more than what was learned, and what they leave out does not.

    Raises:
        CheckpointError: if it is not of a fine-tuned run or of one for another task, or its weights
            do not fit its config.
        ConfigError: if its config names code that is not trusted.
    """
    if TASK_FILE not in checkpoint.manifest.files:
        raise CheckpointError(
            f"`{checkpoint.path}` is not of a fine-tuned run: it has no {TASK_FILE}; give the "
            "run_dir of finetune/run.py, or a task=... that needs none"
        )
    learned = saved_task(checkpoint)
    keys: dict[str, Any] = saved_config(checkpoint).get("task") or {}
    # What was learned says more than the key of its name, which all saved configs have.
    kept = {key: value for key, value in keys.items() if key == "name" or key not in learned}
    own = decode(SavedTask, {"task": kept}).task
    if given is not None and given.name != own.name:
        raise CheckpointError(
            f"`{checkpoint.path}` was fine-tuned for task={own.name}; leave task out"
        )
    task = TASKS.build(given or own)
    try:
        task.load_state(learned)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"`{checkpoint.path}/{TASK_FILE}` is damaged: {error!r}") from error
    saved = read_model(checkpoint, machine.device)
    log.info(f"{task.name} with the checkpoint {checkpoint.path}")
    return Predictor(task, saved.model, Inputs(saved.config, saved.tokenizer))


def adopt_model(checkpoint: Checkpoint, config: ComponentConfig, machine: Machine) -> Predictor:
    """The model in `checkpoint` as it is, and a task that it was not fine-tuned for.

    Raises:
        CheckpointError: if its weights do not fit its config.
        ConfigError: if the model cannot do the task, or its config names code that is not trusted.
    """
    task = TASKS.build(config)
    saved = read_model(checkpoint, machine.device)
    task.adopt(saved.config)
    return Predictor(task, saved.model, Inputs(saved.config, saved.tokenizer))


def make_examples(predictor: Predictor, rows: list[Any]) -> TaskExamples:
    """Examples of `rows`, labelled if all of them have labels that the task knows."""
    task, inputs = predictor.task, predictor.inputs
    if task.has_labels(rows):
        try:
            labelled: TaskExamples = task.examples(rows, inputs, True)
        except DataError as error:
            log.warning(f"the predictions are not compared with the labels: {error}")
        else:
            return labelled
    unlabelled: TaskExamples = task.examples(rows, inputs, False)
    return unlabelled


class _Progress:
    """Tells every few seconds how many of `total` rows are done, and how long the rest takes."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._began = self._told = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told < REPORT_SECONDS:
            return
        self._told = now
        rate = done / (now - self._began)
        left = duration((self._total - done) / rate)
        log.info(f"{done:,}/{self._total:,} rows | {rate:,.0f} rows/s | eta {left}")
