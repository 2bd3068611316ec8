"""The demonstration: every public command once, on text that each Python installation has."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tencentpretrain.config import Config, NonNegativeInt, PathLike, PositiveInt
from tencentpretrain.demo.datasets import (
    Row,
    label_docstrings,
    majority_accuracy,
    write_corpus,
    write_table,
)
from tencentpretrain.demo.library import Module, read_library
from tencentpretrain.demo.report import Prediction, accuracy, read_predictions, sample, table
from tencentpretrain.errors import UserError

ROOT: Final = Path(__file__).resolve().parents[2]
MARK: Final = "made-by-demo"
"""File by which a directory is known as one that may be overwritten."""
MODEL: Final = "bert/tiny"
FINETUNING: Final = ("optim.lr=1e-3", "trainer.batch_size=32", "trainer.log_every=100")
"""The same with and without pre-training."""


class DemoConfig(Config):
    """Show what the toolkit does, from a corpus to predictions."""

    output: PathLike = Path("demo")
    """Directory for all that is made."""
    overwrite: bool = False
    """Whether to replace the directory of an earlier demonstration."""
    library: PathLike = Path(sysconfig.get_paths()["stdlib"])
    """Folder of Python modules whose docstrings and comments are the text."""
    steps: PositiveInt = 1800
    """Updates of pre-training."""
    epochs: PositiveInt = 8
    """Passes of fine-tuning over the labelled docstrings."""
    seed: NonNegativeInt = 1
    """Seed of pre-training and fine-tuning."""


@dataclass(frozen=True)
class Timed:
    """What a step was and the seconds it took."""

    title: str
    seconds: float


class Demo:
    """Runs the steps in one directory.

    Args:
        config: What the user asked for.
    """

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self.output = config.output
        self.corpus = self.output / "corpus.txt"
        self.vocab = self.output / "vocab"
        self.shards = self.output / "shards"
        self.pretrained = self.output / "runs" / "pretrained"
        self.finetuned = self.output / "runs" / "finetuned"
        self.scratch = self.output / "runs" / "from_scratch"
        self.timings: list[Timed] = []

    def table(self, part: str) -> Path:
        return self.output / f"{part}.tsv"

    def predictions(self, run_dir: Path) -> Path:
        return self.output / f"predictions_{run_dir.name}.tsv"

    def run(self) -> None:
        """All steps, then the result."""
        parts = self.make_data()
        for title, words in self.commands():
            self.call(title, words)
        self.show(parts)

    def make_data(self) -> dict[str, list[Row]]:
        """Write the corpus and the three tables."""
        began = time.monotonic()
        say(f"\n# A corpus and a labelled set from {self.config.library}")
        modules = read_library(self.config.library)
        parts = label_docstrings(modules)
        held_out = {row.module for part in ("dev", "test") for row in parts[part]}
        corpus = [module for module in modules if module.name not in held_out]
        write_corpus(corpus, self.corpus)
        for part, rows in parts.items():
            write_table(rows, self.table(part))
        self.describe(corpus, parts)
        self.timings.append(Timed("corpus and labelled set", time.monotonic() - began))
        return parts

    def describe(self, corpus: Sequence[Module], parts: dict[str, list[Row]]) -> None:
        sentences = sum(len(module.sentences) for module in corpus)
        say(f"{self.corpus}: {sentences:,} sentences in {len(corpus)} modules")
        for part, rows in parts.items():
            modules, labels = {row.module for row in rows}, {row.label for row in rows}
            say(
                f"{self.table(part)}: {len(rows):,} docstrings of {len(modules)} modules in "
                f"{len(labels)} packages"
            )

    def commands(self) -> list[tuple[str, list[str]]]:
        """Title and words of each command, in their order."""
        tokenizer = ["tokenizer=wordpiece", f"tokenizer.vocab={self.vocab}"]
        data = [f"data.train={self.table('train')}", f"data.dev={self.table('dev')}"]
        seed = f"seed={self.config.seed}"
        task = ["finetune/run.py", "task=classify"]
        settings = [*data, f"trainer.epochs={self.config.epochs}", *FINETUNING, seed]
        return [
            (
                "vocabulary",
                [
                    *("scripts/build_vocab.py", "tokenizer=wordpiece", "vocab_size=8000"),
                    *(f"corpus.path={self.corpus}", f"output={self.vocab}"),
                ],
            ),
            (
                "shards",
                [
                    *("preprocess.py", *tokenizer, f"corpus.path={self.corpus}"),
                    f"output={self.shards}",
                ],
            ),
            (
                "pre-training",
                [
                    *("pretrain.py", f"model={MODEL}", f"data.path={self.shards}"),
                    *("data.holdout=0.05", "model.objective.length=64"),
                    *(f"run_dir={self.pretrained}", f"trainer.steps={self.config.steps}"),
                    *("trainer.log_every=200", "optim.lr=1e-3", seed),
                ],
            ),
            (
                "fine-tuning with pre-training",
                [*task, f"init={self.pretrained}", *settings, f"run_dir={self.finetuned}"],
            ),
            (
                "fine-tuning without",
                [
                    *(*task, "init=none", f"model={MODEL}", *tokenizer),
                    *(*settings, f"run_dir={self.scratch}"),
                ],
            ),
            ("predictions with", self.predict(self.finetuned)),
            ("predictions without", self.predict(self.scratch)),
        ]

    def predict(self, run_dir: Path) -> list[str]:
        return [
            *("finetune/predict.py", f"checkpoint={run_dir}", f"data.test={self.table('test')}"),
            f"output={self.predictions(run_dir)}",
        ]

    def call(self, title: str, words: Sequence[str]) -> None:
        """Run one command as a user would.

        Raises:
            UserError: if it fails.
        """
        script = os.path.relpath(ROOT / words[0])
        say(f"\n# {title}\n$ {shlex.join(['python', script, *words[1:]])}")
        began = time.monotonic()
        code = run_process([sys.executable, script, *words[1:]])
        if code:
            raise UserError(f"the step `{title}` ended with exit code {code}; its message is above")
        self.timings.append(Timed(title, time.monotonic() - began))

    def show(self, parts: dict[str, list[Row]]) -> None:
        """Print accuracies, some predictions, seconds and paths."""
        test = parts["test"]
        with_, without = (
            read_predictions(self.predictions(run), test) for run in (self.finetuned, self.scratch)
        )
        say(f"\n# Which package is a docstring from? {len(test):,} of modules never seen before")
        rows = [
            ("with pre-training", accuracy(with_)),
            ("without", accuracy(without)),
            ("majority class", majority_accuracy(parts["train"], test)),
        ]
        say(table(("", "accuracy"), [(name, f"{value:.1%}") for name, value in rows]))
        self.show_predictions(with_)
        say("\n# Seconds")
        timings = [*self.timings, Timed("all", sum(step.seconds for step in self.timings))]
        say(table(("step", "s"), [(step.title, f"{step.seconds:.0f}") for step in timings]))
        self.show_paths()

    def show_predictions(self, predictions: Sequence[Prediction]) -> None:
        say("\n# Some predictions")
        rows = [
            (p.answer, f"{p.probability:.0%}", p.row.label, shorten(p.row.text))
            for p in sample(predictions)
        ]
        say(table(("predicted", "sure", "right is", "docstring"), rows))

    def show_paths(self) -> None:
        paths = [
            ("corpus", self.corpus),
            ("labelled set", self.output / "{train,dev,test}.tsv"),
            ("vocabulary", self.vocab),
            ("shards", self.shards),
            ("pre-trained run", self.pretrained),
            ("fine-tuned run", self.finetuned),
            ("run from scratch", self.scratch),
            ("predictions", self.predictions(self.finetuned)),
        ]
        say("\n# What was made")
        say(table(("", ""), [(name, str(path)) for name, path in paths]))
        say(f"\nCurves: tensorboard --logdir {self.output / 'runs'}")


def run_demo(config: DemoConfig) -> int:
    """Run the demonstration; returns the exit code."""
    prepare_directory(config.output, config.overwrite)
    Demo(config).run()
    return 0


def prepare_directory(output: Path, overwrite: bool) -> None:
    """Make an empty directory with a mark.

    Raises:
        UserError: if there is one with content that must not go.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        refusal = UserError(
            f"`{output}` exists; choose another output, or replace the result of an earlier "
            "demonstration with overwrite=true"
        )
        refusal.exit_code = 2
        if not overwrite or not (output / MARK).is_file():
            raise refusal
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARK).write_text("This directory may be replaced by scripts/demo.py.\n")


def run_process(words: Sequence[str]) -> int:
    """Exit code of a process that ends before this one does, whatever stops this one."""
    process = subprocess.Popen(words)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C went to it, too, and it may be saving
        raise
    except SystemExit:
        process.terminate()
        process.wait()
        raise


def shorten(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def say(text: str) -> None:
    print(text, flush=True)
