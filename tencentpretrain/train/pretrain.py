"""Pre-training: shards and a model config in, a run directory out."""

from __future__ import annotations

import logging
from typing import Annotated

from pydantic import Field

from tencentpretrain.config import (
    Config,
    NonNegativeInt,
    PathLike,
    PositiveInt,
    check,
)
from tencentpretrain.data.loader import evaluation_batches
from tencentpretrain.data.objectives.base import OBJECTIVES, Objective
from tencentpretrain.data.packing import split_documents
from tencentpretrain.data.shards import ShardSet, open_shards
from tencentpretrain.errors import DataError, before_start
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.train.callbacks.evaluation import evaluate_loss
from tencentpretrain.train.dry_run import dry_run
from tencentpretrain.train.run_config import RunConfig
from tencentpretrain.train.session import Job, Session
from tencentpretrain.train.trainer import Trainer

log = logging.getLogger("tencentpretrain")


class PretrainData(Config):
    """Where examples come from."""

    path: PathLike | list[PathLike]
    """Directory that preprocess.py wrote, or several made with one tokenizer."""
    dev: PathLike | None = None
    """Preprocessed documents to evaluate on; null holds out a share of data.path."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the documents of data.path that is held out for evaluation."""
    dev_examples: PositiveInt = 2000
    """Greatest number of examples of one evaluation."""
    workers: NonNegativeInt = 0
    """Processes that make examples; 0 makes them in the training process."""
    verify: bool = True
    """Whether to compare all bytes of the shards with their checksums at the start."""


class PretrainConfig(RunConfig):
    """Pre-train a model on preprocessed documents."""

    model: ModelConfig
    """The model; choose a file of models/ such as model=bert/base, then change single keys."""
    data: PretrainData
    """Where examples come from."""

    @check("trainer")
    def _has_length(self) -> str | None:
        if self.trainer.steps is None and not self.trainer.epochs:
            return "trainer.steps (or trainer.epochs) is required, but was not given"
        return None

    @check("model")
    def _has_objective(self) -> str | None:
        if self.model.objective is None:
            return "model.objective is required to pre-train; see the objectives in --help"
        if not self.model.target:
            return "model.target is required: at least one target that the objective supervises"
        return None


def run_pretrain(config: PretrainConfig) -> int:
    """Pre-train as `config` says; returns the exit code."""
    with before_start():
        session = Session(config)
        shards = open_shards(config.data.path, verify=config.data.verify)
        train, dev = make_objectives(config, shards)
        model = build_model(config.model, shards.vocab_size, session.parallel.device, config.seed)
        session.init_weights(model, shards.tokenizer_fingerprint)

    def evaluate(trainer: Trainer) -> dict[str, float]:
        if dev is None:
            return {}
        micro = config.trainer.micro_batch_size or config.trainer.batch_size
        batches = evaluation_batches(dev, micro, config.data.dev_examples)
        return evaluate_loss(trainer.model, batches, trainer)

    fingerprints = {"data": shards.fingerprint, "tokenizer": shards.tokenizer_fingerprint}
    if config.data.dev is not None:
        fingerprints["dev data"] = open_shards(config.data.dev, verify=False).fingerprint
    job = Job(
        model,
        train,
        evaluate,
        tokenizer=shards.tokenizer(),
        fingerprints=fingerprints,
        workers=config.data.workers,
    )
    return dry_run(session, job) if config.dry_run else session.run(job)


def make_objectives(config: PretrainConfig, shards: ShardSet) -> tuple[Objective, Objective | None]:
    """Objectives over the documents of `shards` to train on and, if any, to evaluate on.

    Raises:
        DataError: if the shards are unusable, or not made for this model.
    """
    tokenizer = shards.tokenizer()
    objective = config.model.objective
    assert objective is not None
    dev_shards: ShardSet = shards
    train_documents = dev_documents = None
    if config.data.dev is not None:
        dev_shards = open_shards(config.data.dev, verify=config.data.verify)
        if dev_shards.tokenizer_fingerprint != shards.tokenizer_fingerprint:
            raise DataError(
                f"`{config.data.dev}` was made with another tokenizer than `{config.data.path}`; "
                "preprocess both with one"
            )
    else:
        train_documents, dev_documents = split_documents(shards.documents, config.data.holdout)
    train = OBJECTIVES.build(objective, shards, tokenizer, config.seed, train_documents)
    if config.data.dev is None and (dev_documents is None or len(dev_documents) == 0):
        log.warning("no documents are held out: this run is not evaluated")
        return train, None
    return train, OBJECTIVES.build(objective, dev_shards, tokenizer, config.seed, dev_documents)
