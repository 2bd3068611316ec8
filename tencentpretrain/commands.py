"""The commands of the toolkit: what each reads, runs and is called by its users."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tencentpretrain.config import Config


@dataclass(frozen=True)
class Command:
    """One thing that a user can start.

    Args:
        name: Short name; `conf/<name>.yaml` lists its groups.
        script: How a user calls it.
        summary: What it does, in one sentence.
        config: Its config as `module:Class`; imported late, since torch takes two seconds.
        run: `module:function` that takes the config and returns an exit code.
        examples: What a user may type after the script.
        result: The key of the directory that a run writes, which a sweep makes different for each
            job; None where sweeping makes no sense.
    """

    name: str
    script: str
    summary: str
    config: str
    run: str
    examples: tuple[str, ...]
    result: str | None = None

    def config_class(self) -> type[Config]:
        cls: type[Config] = _load(self.config)
        return cls

    def run_function(self) -> Callable[[Any], int]:
        function: Callable[[Any], int] = _load(self.run)
        return function


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


_ALL = (
    Command(
        name="preprocess",
        script="python preprocess.py",
        summary="Turn text into shards that every objective can read.",
        config="tencentpretrain.data.preprocess:PreprocessConfig",
        run="tencentpretrain.data.preprocess:run_preprocess",
        examples=(
            "tokenizer=wordpiece tokenizer.vocab=vocab.txt corpus.path=corpus.txt output=data/a",
            "tokenizer=bpe tokenizer.vocab=v 'corpus.path=web/*.jsonl.gz' output=data/b workers=4",
            "tokenizer=json tokenizer.vocab=t.json 'corpus.path=[a.txt,b.txt]' output=data/c",
        ),
        result="output",
    ),
    Command(
        name="build_vocab",
        script="python scripts/build_vocab.py",
        summary="Train the vocabulary of a tokenizer.",
        config="tencentpretrain.tokenizers.train:BuildVocabConfig",
        run="tencentpretrain.tokenizers.train:run_build_vocab",
        examples=(
            "tokenizer=wordpiece corpus.path=corpus.txt output=vocab",
            "tokenizer=bpe vocab_size=32000 'corpus.path=web/*.txt' output=bpe",
            "tokenizer=character corpus.path=corpus.txt output=characters",
        ),
    ),
    Command(
        name="pretrain",
        script="python pretrain.py",
        summary="Pre-train a model on shards; the same command continues an interrupted run.",
        config="tencentpretrain.train.pretrain:PretrainConfig",
        run="tencentpretrain.train.pretrain:run_pretrain",
        examples=(
            "model=bert/base data.path=data/a run_dir=runs/bert trainer.steps=10000",
            "model=gpt2/small data.path=data/b run_dir=runs/gpt2 trainer.steps=9000 dry_run=true",
            "-m model=bert/tiny,bert/mini optim.lr=1e-4,3e-4 data.path=data/a run_dir=runs/sweep "
            "trainer.steps=1000",
        ),
        result="run_dir",
    ),
    Command(
        name="finetune",
        script="python finetune/run.py",
        summary="Fine-tune a pre-trained model for a task.",
        config="tencentpretrain.train.finetune:FinetuneConfig",
        run="tencentpretrain.train.finetune:run_finetune",
        examples=(
            "task=classify init=runs/bert data.train=train.tsv data.dev=dev.tsv run_dir=runs/a",
            "task=ner init=runs/bert data.train=train.tsv data.dev=dev.tsv run_dir=runs/names",
            "-m task=classify init=runs/bert optim.lr=2e-5,5e-5 seed=1,2,3 data.train=train.tsv "
            "data.dev=dev.tsv run_dir=runs/sweep",
        ),
        result="run_dir",
    ),
    Command(
        name="predict",
        script="python finetune/predict.py",
        summary="Predict with a fine-tuned model.",
        config="tencentpretrain.train.predict:PredictConfig",
        run="tencentpretrain.train.predict:run_predict",
        examples=(
            "checkpoint=runs/a data.test=test.tsv output=predictions.tsv",
            "checkpoint=runs/names data.test=test.tsv output=entities.tsv",
            "checkpoint=runs/a data.test=test.tsv output=predictions.tsv --cfg job",
        ),
    ),
)
COMMANDS: Final[dict[str, Command]] = {command.name: command for command in _ALL}
