"""Fine-tuning: labelled rows and a pre-trained model in, a run directory that can predict out."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    ConfigError,
    NonNegativeFloat,
    NonNegativeInt,
    PathLike,
    PositiveInt,
    SerializeAsAny,
    check,
    decode,
)
from tencentpretrain.data.buckets import SimilarLengths
from tencentpretrain.data.loader import Order, ShuffledEpochs
from tencentpretrain.distributed.parallel import PARALLELS
from tencentpretrain.errors import DataError, before_start
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.tasks.base import TASKS, Inputs, Task, TaskExamples
from tencentpretrain.tasks.inference import Machine, evaluate
from tencentpretrain.tokenizers.base import TOKENIZERS, Tokenizer
from tencentpretrain.train.base import model_tensors
from tencentpretrain.train.callbacks.logging import JsonLines
from tencentpretrain.train.dry_run import dry_run
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.precision import resolve_precision
from tencentpretrain.train.run_config import RunConfig
from tencentpretrain.train.saved_checkpoint import (
    CHECKPOINTS,
    find_latest,
    open_checkpoint,
)
from tencentpretrain.train.session import Job, Session
from tencentpretrain.train.source import TASK_FILE as TASK_FILE
from tencentpretrain.train.source import find_source, task_model, without_heads
from tencentpretrain.train.trainer_config import TrainerConfig

log = logging.getLogger("tencentpretrain")

EPOCHS = 3.0
HELD_OUT = 0.1


class FinetuneTrainer(TrainerConfig):
    """As in pre-training, with the defaults of fine-tuning."""

    epochs: NonNegativeFloat | None = None
    """Passes over the training data; 3 where neither steps nor epochs are given."""
    eval_every: PositiveInt | None = None
    """Steps between two evaluations; null evaluates once an epoch. The end always is."""


class FinetuneData(Config):
    """Files with labelled rows."""

    train: PathLike
    """File to train on."""
    dev: PathLike | None = None
    """File to choose the best checkpoint by; null holds out a tenth of data.train."""
    test: PathLike | None = None
    """File that the best checkpoint is evaluated on at the end."""
    workers: NonNegativeInt = 0
    """Processes that make batches; 0 makes them in the training process."""
    bucket: PositiveInt | None = None
    """Steps whose examples are sorted by length together, so that each step has similar ones and
    little padding; null leaves them as they are drawn."""


class FinetuneConfig(RunConfig):
    """Fine-tune a model for a task."""

    task: Annotated[SerializeAsAny[ComponentConfig], Choice(TASKS)]
    """What the model is to do."""
    data: FinetuneData
    """Files with labelled rows."""
    model: dict[str, Any] = {}
    """Keys that differ from the model of init; the whole model, such as model=bert/mini, where
    init=none. Its targets are those of the task."""
    tokenizer: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(TOKENIZERS)] = None
    """Tokenizer, where init=none; otherwise it comes with init."""
    trainer: FinetuneTrainer = FinetuneTrainer()
    """Length, batches, precision and rhythm of training."""

    @check("init", "model")
    def _has_model(self) -> str | None:
        if self.init == "none" and not self.model:
            return "model is required where init=none"
        return None

    @check("init", "model", "task")
    def _whole_model(self) -> str | None:
        """A whole model is checked at once; keys that differ need the model that they are of."""
        if self.init != "none" or not self.model:
            return None
        heads = TASKS.get(self.task.name).heads
        try:
            plain = {**without_heads(self.model, heads), "objective": None}
            decode(ModelConfig, plain, "model")
        except ConfigError as error:
            return str(error)
        return None

    @check("init", "tokenizer")
    def _one_tokenizer(self) -> str | None:
        if self.init != "none" and self.tokenizer is not None:
            return "tokenizer comes with init, whose model knows no other; leave it out"
        return None


@dataclass(frozen=True)
class Plan:
    """A run that is ready to start.

    Args:
        session: Of the run.
        job: What it trains.
        task: What the model learns.
        machine: How it is evaluated.
        test: Examples to evaluate the best checkpoint on, at the end.
    """

    session: Session
    job: Job
    task: Task[Any, Any]
    machine: Machine
    test: TaskExamples | None


def run_finetune(config: FinetuneConfig) -> int:
    """Fine-tune as `config` says; returns the exit code."""
    with before_start():
        plan = prepare(config)
    if config.dry_run:
        code = dry_run(plan.session, plan.job)
    else:
        code = plan.session.run(plan.job)
        if code == 0 and plan.test is not None:
            report_test(plan, plan.test)
    plan.session.parallel.close()
    return code


def prepare(config: FinetuneConfig) -> Plan:
    """Read, check and build everything that a run needs; nothing is written.

    Raises:
        UserError: for data or a checkpoint that cannot be used.
        ConfigError: for a config that does not fit them.
    """
    parallel = PARALLELS.build(config.parallel)
    parallel.begin("opening the data")
    source = find_source(config.init, config.run_dir, config.tokenizer)
    task = TASKS.build(config.task)
    task.inherit(source.learned)
    rows = task.read(config.data.train, True)
    task.learn(rows)
    train_rows, dev_rows = _split(task, rows, config.data.dev)
    test_rows = None if config.data.test is None else task.read(config.data.test, True)
    model_config = task_model(task, source.model, config.model)
    inputs = Inputs(model_config, source.tokenizer)
    train, dev = (task.examples(part, inputs, True) for part in (train_rows, dev_rows))
    train.vary(config.seed)
    test = None if test_rows is None else task.examples(test_rows, inputs, True)
    session = Session(resolve(config, model_config, len(train)), parallel)
    parallel.begin("building the model")
    log.info(f"{task.name}: {len(train):,} examples to train on, {len(dev):,} to choose by")
    tokenizer, device = source.tokenizer, parallel.device
    vocabulary = 0 if tokenizer is None else tokenizer.vocab_size
    model = build_model(model_config, vocabulary, "meta")
    fingerprint = None if tokenizer is None else tokenizer.fingerprint
    allow = ("target.*", *(f"{part}.*" for part in task.unused))
    session.prepare(model, model_config, fingerprint, allow=allow)
    machine = Machine(
        device,
        resolve_precision(config.trainer.precision, device),
        config.trainer.micro_batch_size or config.trainer.batch_size,
        config.data.workers,
        parallel,
    )
    job = Job(
        model,
        train,
        lambda trainer: evaluate(task, trainer.model, dev, machine, "eval"),
        score=f"eval/{task.score}",
        mode=task.mode,
        tokenizer=tokenizer,
        files={TASK_FILE: task_file(task)},
        fingerprints=_fingerprints(task, config, tokenizer),
        workers=config.data.workers,
        order=bucketed(config, train),
    )
    return Plan(session, session.accompany(job), task, machine, test)


def resolve(config: FinetuneConfig, model: ModelConfig, examples: int) -> FinetuneConfig:
    """`config` with the whole `model`, and with lengths that depend on the number of `examples`."""
    trainer = config.trainer
    lengths: dict[str, float] = {}
    if trainer.steps is None and not trainer.epochs:
        lengths["epochs"] = EPOCHS
    if trainer.eval_every is None:
        lengths["eval_every"] = max(1, round(examples / trainer.batch_size))
    return config.model_copy(
        update={"model": model.to_dict(), "trainer": trainer.model_copy(update=lengths)}
    )


def bucketed(config: FinetuneConfig, examples: TaskExamples) -> Order | None:
    """The order of samples, with similar lengths together where `data.bucket` says so."""
    if config.data.bucket is None:
        return None
    order, size = ShuffledEpochs(len(examples), config.seed), config.trainer.batch_size
    return SimilarLengths(order, examples.sizes(), size, config.data.bucket, config.seed)


def task_file(task: Task[Any, Any]) -> bytes:
    """What `task` has learned, as it lies in every checkpoint."""
    content = {"name": task.name, **task.state()}
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


def report_test(plan: Plan, examples: TaskExamples) -> None:
    """Evaluate the best checkpoint of a finished run on `examples`, and write it down once."""
    run_dir, parallel = plan.session.config.run_dir, plan.session.parallel
    parallel.begin("testing the best checkpoint")
    newest = find_latest(run_dir / CHECKPOINTS, False, parallel.circle)
    if newest is None or newest.step < plan.session.steps(plan.job.examples):
        return  # trainer.stop_after has ended the process, not the run
    best = open_checkpoint(run_dir, circle=parallel.circle)
    load_weights(plan.job.model, model_tensors(best))
    results = evaluate(plan.task, plan.job.model, examples, plan.machine, "test")
    if not parallel.is_main:
        return
    values = "  ".join(f"{name} {value:.4f}" for name, value in results.items())
    log.info(f"checkpoint of step {best.step} | {values}")
    path = run_dir / "metrics.jsonl"
    written = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if not any(line.startswith(f'{{"step": {best.step}, "test/') for line in written):
        JsonLines(path).write(best.step, results)


def _split(task: Task[Any, Any], rows: list[Any], dev: Path | None) -> tuple[list[Any], list[Any]]:
    """Rows to train on, and rows to choose the best checkpoint by."""
    if dev is not None:
        return rows, task.read(dev, True)
    shares = [_share(task.key(row)) for row in rows]
    # Of very few rows maybe none falls below the limit.
    limit = max(HELD_OUT, min(shares))
    train = [row for row, share in zip(rows, shares, strict=True) if share > limit]
    held_out = [row for row, share in zip(rows, shares, strict=True) if share <= limit]
    if not train:
        raise DataError("data.train has too few different rows to hold some out; give data.dev")
    log.info(f"data.dev is not given: {len(held_out):,} of {len(rows):,} rows are held out")
    return train, held_out


def _share(key: str) -> float:
    """A number in [0, 1) that depends on nothing but `key`, so that equal rows stay together."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _fingerprints(
    task: Task[Any, Any], config: FinetuneConfig, tokenizer: Tokenizer | None
) -> dict[str, str]:
    """What a continued run must find as it was."""
    data = task.fingerprint(config.data.train)
    found = {"data": data if config.data.dev else f"{data} without the rows held out"}
    if config.data.dev is not None:
        found["dev data"] = task.fingerprint(config.data.dev)
    return found | ({} if tokenizer is None else {"tokenizer": tokenizer.fingerprint})
