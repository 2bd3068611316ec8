"""What a teacher says of all examples of a run: what `scripts/store_teacher.py` does."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Annotated

import numpy as np

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    ConfigError,
    NonNegativeInt,
    PathLike,
    PositiveInt,
    SerializeAsAny,
)
from tencentpretrain.data.loader import Examples
from tencentpretrain.data.objectives.base import OBJECTIVES
from tencentpretrain.data.shard_format import MAIN
from tencentpretrain.data.shard_writer import Ragged, ShardWriter, check_output
from tencentpretrain.distill.answers import TEACHING, StatesAnswer, Teaching
from tencentpretrain.distill.stored import stored_columns, top_of
from tencentpretrain.distill.teacher import Teacher, check_vocabularies
from tencentpretrain.errors import before_start
from tencentpretrain.targets.companion import Setting
from tencentpretrain.targets.heads import VocabularyTarget
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.tools.saved_model import SavedModel, ToolConfig, load_model
from tencentpretrain.train.callbacks.logging import duration
from tencentpretrain.train.sources import PretrainData, Sources

log = logging.getLogger("tencentpretrain")

REPORT_EVERY = 100
"""Batches between two lines about the progress."""


class StoreTeacherConfig(ToolConfig):
    """Store what a teacher says of the examples of a pre-training run."""

    data: PretrainData
    """Where examples come from, as in the run that is to learn from them."""
    objective: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(OBJECTIVES)] = None
    """How examples are made, as in that run; null is as the teacher learned."""
    seed: NonNegativeInt = 0
    """That of the run: it decides the masks and where rows begin."""
    epochs: PositiveInt = 1
    """How many epochs of the run are stored; each has rows and masks of its own."""
    top: PositiveInt = 64
    """How many of the likeliest entries are stored at each position; at most all."""
    output: PathLike
    """Directory to make, such as one next to the documents."""
    overwrite: bool = False
    """Whether a directory of shards at output may be replaced."""


def run_store_teacher(config: StoreTeacherConfig) -> int:
    """Store as `config` says; returns the exit code."""
    with before_start():
        check_output(config.output, config.overwrite)
        machine = config.machine()
        saved = load_model(config, machine)
        objective = config.objective or saved.config.objective
        if objective is None:
            raise ConfigError.at("objective", "is required: the teacher was not pre-trained")
        if config.data.mix:
            raise ConfigError.at("data.mix", "cannot be stored; give data.path")
        sources = Sources(config.data, objective, config.seed)
        tokenizer = sources.target_tokenizer or sources.shards.tokenizer()
        label = OBJECTIVES.get(objective.name).supervises[0]
        examples = sources.examples
        setting = Setting(
            machine.device,
            machine.dtype,
            examples,
            samples=config.epochs * len(examples),
            tokenizer=sources.shards.tokenizer(),
            target_tokenizer=sources.target_tokenizer,
        )
        check_vocabularies(saved, setting)
        teacher = Teacher(saved, machine.dtype)
        teacher.teach(label)
        _check_target(saved, label)
    _write(config, teacher, examples, label, tokenizer)
    log.info(f"{config.epochs} epochs of {len(examples):,} examples are in {config.output}")
    return 0


def _check_target(saved: SavedModel, label: str) -> None:
    if isinstance(saved.model.target[label], VocabularyTarget):
        return
    message = f"supervises `{label}`, which does not predict entries of a vocabulary"
    raise ConfigError.at("objective", message)


def _write(
    config: StoreTeacherConfig,
    teacher: Teacher,
    examples: Examples,
    label: str,
    tokenizer: Tokenizer,
) -> None:
    device = next(teacher.model.parameters()).device
    count = min(config.top, tokenizer.vocab_size)
    batches = -(-len(examples) // config.batch_size)
    began = time.monotonic()
    columns = stored_columns(tokenizer.vocab_size)
    with ShardWriter(
        config.output, tokenizer, columns=columns, overwrite=config.overwrite
    ) as writer:
        for number, (epoch, indices) in enumerate(_places(examples, config)):
            made = [examples.make(epoch, index) for index in indices]
            batch = teacher(examples.collate(made).to(device))
            teaching: Teaching = batch.extras[TEACHING][label]
            assert isinstance(teaching.answer, StatesAnswer)
            top = {name: t.cpu().numpy() for name, t in top_of(teaching.answer, count).items()}
            lengths = np.array([len(example["labels"]) for example in made], np.int64)
            ids, scores = (
                Ragged(top[name].reshape(-1), lengths * count) for name in ("ids", "scores")
            )
            labels = np.concatenate([example["labels"] for example in made])
            rest, given = Ragged(top["rest"], lengths), Ragged(labels, lengths)
            writer.write({MAIN: ids, "scores": scores, "labels": given, "rest": rest})
            if number % REPORT_EVERY == REPORT_EVERY - 1:
                total = batches * config.epochs
                left = duration((time.monotonic() - began) / (number + 1) * (total - number - 1))
                log.info(f"{number + 1:,}/{total:,} batches | eta {left}")


def _places(examples: Examples, config: StoreTeacherConfig) -> Iterator[tuple[int, range]]:
    """Epoch and numbers of the examples of each batch, in their order."""
    for epoch in range(config.epochs):
        for start in range(0, len(examples), config.batch_size):
            yield epoch, range(start, min(start + config.batch_size, len(examples)))
