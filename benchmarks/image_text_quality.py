"""Quality of images with texts on CIFAR-10, whose captions are made of the names of its classes.

`python -m benchmarks.image_text_quality clip|vilt [--output runs/quality] [--steps 1500]
[--seeds 0 1 2]` trains CLIP or ViLT from scratch on 10,000 images and tells how well it does on
2,000 others: CLIP finds the class of an image by its name alone, ViLT tells whether a caption
belongs to an image. Only public commands are run, and what was done before is not done again.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path

from benchmarks.common import shared_data
from benchmarks.quality import Notebook

CAPTION = "a photo of a {label}"


def shards(book: Notebook, part: str) -> Path:
    """Captioned images of a part of CIFAR-10, preprocessed."""
    data, output = shared_data(), book.folder / part
    book.run(
        "preprocess.py",
        f"corpus.path={data / 'image' / f'cifar10_{part}.tar'}",
        "corpus.format=image_text",
        f'corpus.caption="{CAPTION}"',
        "tokenizer=wordpiece",
        f"tokenizer.vocab={data / 'vocab' / 'google_uncased_en_vocab.txt'}",
        f"output={output}",
        makes=output,
    )
    return output


def pretrain(book: Notebook, seed: int, options: argparse.Namespace) -> Path:
    """A model trained from scratch; returns its run."""
    run = book.folder / f"{options.model}_{seed}"
    book.run(
        "pretrain.py",
        f"model={options.model}/tiny",
        f"data.path={book.folder / 'train'}",
        f"data.dev={book.folder / 'test'}",
        f"run_dir={run}",
        f"seed={seed}",
        f"trainer.batch_size={options.batch}",
        f"trainer.steps={options.steps}",
        "optim.lr=1e-3",
        "trainer.log_every=50",
        f"trainer.eval_every={max(1, options.steps // 4)}",
    )
    return run


def zero_shot(book: Notebook, run: Path) -> float:
    """Share of the test images whose class CLIP tells by its name."""
    answers = run.with_suffix(".tsv")
    book.run(
        "finetune/predict.py",
        f"checkpoint={run}",
        "task=image_text_retrieve",
        f'task.templates=["{CAPTION}"]',
        f"data.test={shared_data() / 'image' / 'cifar10_test.tar'}",
        f"output={answers}",
        makes=answers,
    )
    with answers.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return statistics.mean(row["label"] == row["path"].split("/")[-2] for row in rows)


def add_row(book: Notebook, name: str, scores: list[float]) -> None:
    """Add a row with the mean and each of the `scores`."""
    each = ", ".join(f"{score:.4f}" for score in scores)
    book.rows.append(f"| {name} | {statistics.mean(scores):.4f} | {each} |")
    book.write("| what | accuracy | by seed |\n|---|---|---|")


def main() -> None:
    """Run everything with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("clip", "vilt"))
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    book = Notebook(f"cifar10_{options.model}", options.output)
    for part in ("train", "test"):
        shards(book, part)
    runs = [pretrain(book, seed, options) for seed in options.seeds]
    if options.model == "clip":
        add_row(book, "CLIP, class by its name (1 of 10)", [zero_shot(book, run) for run in runs])
        return
    matches = [book.values(run, "eval/match/accuracy")[-1][1] for run in runs]
    add_row(book, "ViLT, caption and image belong together (half do)", matches)


if __name__ == "__main__":
    main()
