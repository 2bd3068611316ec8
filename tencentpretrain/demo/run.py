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
from pathlib import Path
from typing import Final

from tencentpretrain.config import Config, NonNegativeInt, PathLike, PositiveInt
from tencentpretrain.demo.datasets import Row, label_docstrings, write_corpus, write_table
from tencentpretrain.demo.library import read_library
from tencentpretrain.demo.report import final_report
from tencentpretrain.errors import UserError

ROOT: Final = Path(__file__).resolve().parents[2]
MARK: Final = "made-by-demo"
"""File by which a directory is known as one that may be overwritten."""
DATA: Final = "corpus and labelled set"
STEPS: Final = {
    "vocabulary": """
        scripts/build_vocab.py tokenizer=wordpiece vocab_size=8000
        corpus.path={output}/corpus.txt output={output}/vocab
    """,
    "shards": """
        preprocess.py tokenizer=wordpiece tokenizer.vocab={output}/vocab
        corpus.path={output}/corpus.txt output={output}/shards
    """,
    "pre-training": """
        pretrain.py model=bert/tiny data.path={output}/shards run_dir={output}/runs/pretrained
        trainer.steps={steps} model.objective.length=64 optim.lr=1e-3 data.holdout=0.05
        trainer.log_every=200 seed={seed}
    """,
    "fine-tuning with pre-training": """
        finetune/run.py task=classify init={output}/runs/pretrained
        data.train={output}/train.tsv data.dev={output}/dev.tsv run_dir={output}/runs/with
        trainer.epochs={epochs} optim.lr=1e-3 trainer.log_every=100 seed={seed}
    """,
    "fine-tuning without": """
        finetune/run.py task=classify init=none model=bert/tiny
        tokenizer=wordpiece tokenizer.vocab={output}/vocab
        data.train={output}/train.tsv data.dev={output}/dev.tsv run_dir={output}/runs/without
        trainer.epochs={epochs} optim.lr=1e-3 trainer.log_every=100 seed={seed}
    """,
    "predictions with": """
        finetune/predict.py checkpoint={output}/runs/with
        data.test={output}/test.tsv output={output}/predictions_with.tsv
    """,
    "predictions without": """
        finetune/predict.py checkpoint={output}/runs/without
        data.test={output}/test.tsv output={output}/predictions_without.tsv
    """,
}
"""Commands by title, in their order. Both fine-tunings have the same settings."""


class DemoConfig(Config):
    """Show what the toolkit does, from a corpus to predictions."""

    output: PathLike = Path("demo")
    """Directory for all that is made."""
    overwrite: bool = False
    """Whether to replace the directory of an earlier demonstration."""
    library: PathLike | None = None
    """Folder of Python modules whose docstrings and comments are the text; null is the standard
    library of this Python."""
    steps: PositiveInt = 1800
    """Updates of pre-training."""
    epochs: PositiveInt = 8
    """Passes of fine-tuning over the labelled docstrings."""
    seed: NonNegativeInt = 1
    """Seed of pre-training and fine-tuning."""


def run_demo(config: DemoConfig) -> int:
    """Run all steps and print the result; returns the exit code."""
    prepare_directory(config.output, config.overwrite)
    seconds: dict[str, float] = {}
    began = time.monotonic()
    parts = make_data(config)
    seconds[DATA] = time.monotonic() - began
    for title, words in commands(config).items():
        began = time.monotonic()
        call(title, words)
        seconds[title] = time.monotonic() - began
    for line in final_report(config.output, parts, seconds):
        say(line)
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


def make_data(config: DemoConfig) -> dict[str, list[Row]]:
    """Write corpus.txt and the tables train.tsv, dev.tsv and test.tsv; returns the tables.

    The corpus lacks the modules of the dev and test parts: what pre-training adds cannot come
    from having read them.
    """
    library = config.library or Path(sysconfig.get_paths()["stdlib"])
    say(f"# {DATA}: docstrings and comments in {library}")
    modules = read_library(library)
    parts = label_docstrings(modules)
    held_out = {row.module for part in ("dev", "test") for row in parts[part]}
    corpus = [module for module in modules if module.name not in held_out]
    write_corpus(corpus, config.output / "corpus.txt")
    sentences = sum(len(module.sentences) for module in corpus)
    say(f"{config.output}/corpus.txt: {sentences:,} sentences in {len(corpus)} modules")
    for part, rows in parts.items():
        write_table(rows, config.output / f"{part}.tsv")
        labels, names = {row.label for row in rows}, {row.module for row in rows}
        say(
            f"{config.output}/{part}.tsv: {len(rows):,} docstrings of {len(names)} modules in "
            f"{len(labels)} packages"
        )
    return parts


def commands(config: DemoConfig) -> dict[str, list[str]]:
    """Words of each command by title."""
    values = {
        "output": config.output,
        "steps": config.steps,
        "epochs": config.epochs,
        "seed": config.seed,
    }
    # Split first: a path may have spaces.
    return {
        title: [word.format(**values) for word in command.split()]
        for title, command in STEPS.items()
    }


def call(title: str, words: Sequence[str]) -> None:
    """Run one command as a user would.

    Raises:
        UserError: if it fails.
    """
    script = os.path.relpath(ROOT / words[0])
    say(f"\n# {title}\n$ {shlex.join(['python', script, *words[1:]])}")
    code = run_process([sys.executable, script, *words[1:]])
    if code:
        raise UserError(f"the step `{title}` ended with exit code {code}; its message is above")


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


def say(text: str) -> None:
    print(text, flush=True)
