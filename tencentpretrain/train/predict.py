"""Prediction: a fine-tuned run and a file of rows in, a file with one answer for each row out."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    ConfigError,
    PathLike,
    PositiveInt,
    SerializeAsAny,
    decode,
)
from tencentpretrain.distributed.parallel import SingleProcess
from tencentpretrain.errors import CheckpointError, DataError, before_start
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.tasks.answers import answer_lines
from tencentpretrain.tasks.base import TASKS, Inputs, Task, TaskExamples
from tencentpretrain.tasks.inference import Machine, infer
from tencentpretrain.train.base import model_tensors
from tencentpretrain.train.callbacks.logging import duration
from tencentpretrain.train.durable import DurableFile, sync_directory, temporary_name
from tencentpretrain.train.finetune import TASK_FILE
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.precision import PrecisionName, resolve_precision
from tencentpretrain.train.saved_checkpoint import Checkpoint, open_checkpoint
from tencentpretrain.train.source import saved_config, saved_tokenizer
from tencentpretrain.wrappers.base import WRAPPERS, apply_wrappers

log = logging.getLogger("tencentpretrain")

REPORT_SECONDS: Final = 10.0
"""Between two lines about the progress."""


class PredictData(Config):
    """What to predict."""

    test: PathLike
    """File with the rows, in the form of the training data; labels need not be there."""


class PredictConfig(Config):
    """Predict with a fine-tuned run."""

    checkpoint: PathLike
    """Run directory, of which the best checkpoint is taken, or one of its checkpoints."""
    data: PredictData
    """What to predict."""
    output: PathLike
    """File for the answers, in the order of the rows: JSON lines if it ends in .jsonl, else TSV."""
    overwrite: bool = False
    """Whether output may replace a file that is there."""
    details: bool = True
    """Write all that the task knows of a row, such as the probability of each class."""
    batch_size: PositiveInt = 64
    """Rows computed at once; the answers do not depend on it."""
    precision: PrecisionName = "auto"
    """Type of matrix products: auto (bf16 where the hardware is fast at it), fp32 or bf16."""
    device: str | None = None
    """Device name such as cpu or cuda:1; null takes the GPU where there is one."""
    plugins: list[str] = []
    """Packages to import that register components of your own."""


class SavedRun(Config):
    """What prediction needs of the config of a fine-tuned run."""

    task: Annotated[SerializeAsAny[ComponentConfig], Choice(TASKS)]
    """What the model was trained to do."""
    model: ModelConfig
    """The model."""
    wrappers: dict[str, Annotated[SerializeAsAny[ComponentConfig], Choice(WRAPPERS)]] = {}
    """Changes to the built model, by name."""


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
        check_output(config)
        task_device = SingleProcess.Config(name="none", device=config.device)
        device = SingleProcess(task_device).device
        machine = Machine(device, resolve_precision(config.precision, device), config.batch_size)
        predictor = load_predictor(open_checkpoint(config.checkpoint), machine)
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


def check_output(config: PredictConfig) -> None:
    """Refuse to lose a file.

    Raises:
        ConfigError: if the output is there already, is what is read, or cannot be written.
    """
    output = config.output
    if output.exists() and config.data.test.exists() and output.samefile(config.data.test):
        raise ConfigError.at("output", f"must be another file than data.test, but is `{output}`")
    if output.is_dir():
        raise ConfigError.at("output", f"must be a file, but `{output}` is a directory")
    if output.exists() and not config.overwrite:
        message = f"`{output}` exists; choose another name, or replace it with overwrite=true"
        raise ConfigError.at("output", message)
    folder = output.absolute().parent
    if not folder.is_dir():
        raise ConfigError.at("output", f"must be in a folder that exists, but `{folder}` does not")
    if not os.access(folder, os.W_OK):
        raise ConfigError.at("output", f"must be in a folder that can be written to: `{folder}`")


def load_predictor(checkpoint: Checkpoint, machine: Machine) -> Predictor:
    """The model in `checkpoint` and the task that it was trained for.

    Raises:
        CheckpointError: if it is not of a fine-tuned run, or its weights do not fit its config.
        ConfigError: if its config names code that is not trusted.
    """
    if TASK_FILE not in checkpoint.manifest.files:
        raise CheckpointError(
            f"`{checkpoint.path}` is not of a fine-tuned run: it has no {TASK_FILE}; give the "
            "run_dir of finetune/run.py"
        )
    config = saved_config(checkpoint)
    saved = decode(SavedRun, {key: config[key] for key in SavedRun.model_fields if key in config})
    task = TASKS.build(saved.task)
    try:
        task.load_state(json.loads(checkpoint.file(TASK_FILE).read_bytes()))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"`{checkpoint.path}/{TASK_FILE}` is damaged: {error!r}") from error
    tokenizer = saved_tokenizer(checkpoint)
    vocabulary = 0 if tokenizer is None else tokenizer.vocab_size
    model = build_model(saved.model, vocabulary, machine.device)
    apply_wrappers(saved.wrappers, model)
    load_weights(model, model_tensors(checkpoint, machine.device))
    log.info(f"{task.name} with the checkpoint {checkpoint.path}")
    return Predictor(task, model, Inputs(saved.model, tokenizer))


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


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file that is whole or not there at all.

    Raises:
        OSError: if it cannot be written; what was there stays.
    """
    partial = path.with_name(temporary_name(path.name))
    try:
        with DurableFile(partial) as file:
            for line in lines:
                file.write(line.encode())
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise
    sync_directory(path.absolute().parent)


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
