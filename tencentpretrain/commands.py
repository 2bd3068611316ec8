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
        is_shared: Whether several processes may run it together.
    """

    name: str
    script: str
    summary: str
    config: str
    run: str
    examples: tuple[str, ...]
    result: str | None = None
    is_shared: bool = False

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
        is_shared=True,
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
        is_shared=True,
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
    Command(
        name="convert",
        script="python scripts/convert.py",
        summary="Convert a model of transformers, TencentPretrain or UER-py to ours, or back.",
        config="tencentpretrain.convert.command:ConvertConfig",
        run="tencentpretrain.convert.command:run_convert",
        examples=(
            "from=bert-base-uncased to=converted/bert",
            "from=runs/reviews to=exported dtype=bfloat16",
            "from=bert.bin config=base_config.json tokenizer=wordpiece tokenizer.vocab=vocab.txt "
            "to=converted/old",
        ),
    ),
    Command(
        name="cloze",
        script="python scripts/cloze.py",
        summary="Fill the gaps in texts with the likeliest words.",
        config="tencentpretrain.tools.cloze:ClozeConfig",
        run="tencentpretrain.tools.cloze:run_cloze",
        examples=(
            "checkpoint=runs/bert text='The capital of France is [MASK].'",
            "checkpoint=runs/bert input=texts.txt output=words.jsonl top=10",
            "checkpoint=runs/bert input=texts.txt batch_size=64 precision=fp32",
        ),
    ),
    Command(
        name="extract",
        script="python scripts/extract.py",
        summary="Extract vectors of texts, or of the entries of the vocabulary.",
        config="tencentpretrain.tools.extract:ExtractConfig",
        run="tencentpretrain.tools.extract:run_extract",
        examples=(
            "checkpoint=runs/bert input=texts.txt output=vectors.npy pooling=mean layer=-2",
            "checkpoint=runs/bert input=texts.txt output=vectors.npy pooling=mean "
            "fit_whitening=whitening.safetensors dimensions=256",
            "checkpoint=runs/bert what=words output=words.txt",
        ),
    ),
    Command(
        name="neighbours",
        script="python scripts/neighbours.py",
        summary="List the entries of the vocabulary that are most like given words.",
        config="tencentpretrain.tools.neighbours:NeighboursConfig",
        run="tencentpretrain.tools.neighbours:run_neighbours",
        examples=(
            "checkpoint=runs/bert words=[paris,king]",
            "checkpoint=runs/bert words=[bank] text='the bank of the river' top=20",
            "checkpoint=runs/bert words=[bank] text='money in the bank' candidates=1000",
        ),
    ),
    Command(
        name="average",
        script="python scripts/average.py",
        summary="Average the weights of checkpoints of one model.",
        config="tencentpretrain.tools.average:AverageConfig",
        run="tencentpretrain.tools.average:run_average",
        examples=(
            "run_dir=runs/bert last=5 output=runs/bert_mean",
            "'checkpoints=[runs/seed1,runs/seed2,runs/seed3]' output=runs/soup",
            "run_dir=runs/bert output=runs/bert_mean overwrite=true",
        ),
    ),
    Command(
        name="audio_statistics",
        script="python scripts/audio_statistics.py",
        summary="Compute means and deviations of the bands of a corpus of sounds.",
        config="tencentpretrain.tools.audio_statistics:AudioStatisticsConfig",
        run="tencentpretrain.tools.audio_statistics:run_audio_statistics",
        examples=(
            "path=train.tsv output=statistics.json",
            "path=recordings bank.bands=40 bank.rate=8000 output=statistics.json",
            "'path=[read.tsv,spoken.tar]' output=statistics.json overwrite=true",
        ),
    ),
    Command(
        name="adapt_vocab",
        script="python scripts/adapt_vocab.py",
        summary="Give a trained model another vocabulary; entries that both have keep their rows.",
        config="tencentpretrain.tools.adapt_vocab:AdaptVocabConfig",
        run="tencentpretrain.tools.adapt_vocab:run_adapt_vocab",
        examples=(
            "checkpoint=runs/bert tokenizer=wordpiece tokenizer.vocab=new output=runs/adapted",
            "checkpoint=runs/bert tokenizer=json tokenizer.vocab=t.json output=runs/adapted "
            "new_entries=random",
            "checkpoint=runs/gpt2 tokenizer=bpe tokenizer.vocab=grown output=runs/grown",
        ),
    ),
    Command(
        name="export",
        script="python scripts/export.py",
        summary="Write a model without its training, to be handed on.",
        config="tencentpretrain.tools.export:ExportConfig",
        run="tencentpretrain.tools.export:run_export",
        examples=(
            "checkpoint=runs/bert output=exported/bert",
            "checkpoint=runs/reviews output=exported/reviews precision=bf16",
            "checkpoint=runs/bert/checkpoints/step_00001000 output=exported/bert overwrite=true",
        ),
    ),
    Command(
        name="merge_adapter",
        script="python scripts/merge_adapter.py",
        summary="Fold an adapter into the model that it adapts.",
        config="tencentpretrain.tools.merge_adapter:MergeAdapterConfig",
        run="tencentpretrain.tools.merge_adapter:run_merge_adapter",
        examples=(
            "checkpoint=runs/lora output=runs/merged",
            "checkpoint=runs/lora base=moved/bert output=runs/merged",
            "checkpoint=runs/lora/checkpoints/step_00001000 output=runs/merged overwrite=true",
        ),
    ),
    Command(
        name="convert_adapter",
        script="python scripts/convert_adapter.py",
        summary="Convert an adapter of ours for the peft library, or one of peft for us.",
        config="tencentpretrain.convert.peft:ConvertAdapterConfig",
        run="tencentpretrain.convert.peft:run_convert_adapter",
        examples=(
            "checkpoint=runs/lora output=adapters/lora base_name=bert-base-uncased",
            "adapter=adapters/lora base=converted/bert output=runs/lora",
            "adapter=adapters/lora base=models/roberta family=roberta output=runs/lora",
        ),
    ),
    Command(
        name="perplexity",
        script="python scripts/perplexity.py",
        summary="Measure how well a causal model predicts a text.",
        config="tencentpretrain.evaluation.perplexity:PerplexityConfig",
        run="tencentpretrain.evaluation.perplexity:run_perplexity",
        examples=(
            "checkpoint=runs/gpt2 input=test.txt",
            "checkpoint=runs/gpt2 input=test.txt documents=lines bos=true stride=64",
            "checkpoint=runs/gpt2 input=book.txt documents=text output=perplexity.json",
        ),
    ),
    Command(
        name="generate",
        script="python scripts/generate.py",
        summary="Write texts with a model.",
        config="tencentpretrain.tools.generate:GenerateConfig",
        run="tencentpretrain.tools.generate:run_generate",
        examples=(
            "checkpoint=runs/gpt2 prompt='Once upon a time' temperature=0.8 top_p=0.95",
            "checkpoint=runs/zh_en input=source.txt output=target.txt beams=4 max_new_tokens=200",
            "checkpoint=runs/chat template=chatml input=prompts.jsonl output=answers.jsonl",
        ),
    ),
    Command(
        name="store_teacher",
        script="python scripts/store_teacher.py",
        summary="Store what a teacher says of the examples of a pre-training run.",
        config="tencentpretrain.tools.store_teacher:StoreTeacherConfig",
        run="tencentpretrain.tools.store_teacher:run_store_teacher",
        examples=(
            "checkpoint=runs/large data.path=data/a top=64 output=data/a_top64",
            "checkpoint=runs/large data.path=data/a objective.name=lm objective.length=256 "
            "epochs=3 output=data/a_top64",
            "checkpoint=runs/bert data.path=data/b seed=1 top=256 output=data/b_top256",
        ),
    ),
)
COMMANDS: Final[dict[str, Command]] = {command.name: command for command in _ALL}
