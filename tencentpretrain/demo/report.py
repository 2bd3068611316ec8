"""What the demonstration tells at its end: predictions beside the truth, in small tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tencentpretrain.demo.datasets import Row, majority_accuracy
from tencentpretrain.errors import DataError

MADE: Final = {
    "corpus": "corpus.txt",
    "labelled set": "{train,dev,test}.tsv",
    "vocabulary": "vocab",
    "shards": "shards",
    "pre-trained run": "runs/pretrained",
    "fine-tuned run": "runs/with",
    "run from scratch": "runs/without",
    "predictions": "predictions_{with,without}.tsv",
}
SHOWN: Final = 60
"""Characters of a docstring that are printed."""


@dataclass(frozen=True)
class Prediction:
    """An answer, how likely the model finds it, and the row that it is about."""

    answer: str
    probability: float
    row: Row


def read_predictions(path: Path, rows: Sequence[Row]) -> list[Prediction]:
    """Predictions that finetune/predict.py wrote for `rows`, in their order.

    Raises:
        DataError: if their number differs.
    """
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    names = header.split("\t")
    answer, probability = names.index("label"), names.index("probability")
    if len(lines) != len(rows):
        raise DataError(f"{path} must have {len(rows)} predictions, but has {len(lines)}")
    found = [line.split("\t") for line in lines]
    return [
        Prediction(fields[answer], float(fields[probability]), row)
        for fields, row in zip(found, rows, strict=True)
    ]


def accuracy(predictions: Sequence[Prediction]) -> float:
    return sum(p.answer == p.row.label for p in predictions) / len(predictions)


def sample(predictions: Sequence[Prediction], count: int = 8) -> list[Prediction]:
    """Some predictions, evenly spread, so that different packages are among them."""
    step = max(1, len(predictions) // count)
    return list(predictions[step // 2 :: step])[:count]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest field; a header of empty texts is left out."""
    lines = [header, *rows] if any(header) else list(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ("  ".join(f"{t:<{w}}" for t, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def final_report(
    output: Path, parts: Mapping[str, Sequence[Row]], seconds: Mapping[str, float]
) -> Iterator[str]:
    """Accuracies, some predictions, the seconds of each step, and the paths of what was made."""
    test = parts["test"]
    with_, without = (
        read_predictions(output / f"predictions_{name}.tsv", test) for name in ("with", "without")
    )
    yield f"\n# Which package is a docstring from? {len(test):,} of modules never seen before"
    accuracies = {
        "with pre-training": accuracy(with_),
        "without": accuracy(without),
        "majority class": majority_accuracy(parts["train"], test),
    }
    yield table(("", "accuracy"), [(name, f"{value:.1%}") for name, value in accuracies.items()])
    yield "\n# Some predictions with pre-training"
    rows = [
        (p.answer, f"{p.probability:.0%}", p.row.label, shorten(p.row.text)) for p in sample(with_)
    ]
    yield table(("predicted", "sure", "right is", "docstring"), rows)
    yield "\n# Seconds"
    timings = {**seconds, "all": sum(seconds.values())}
    yield table(("", ""), [(name, f"{value:.0f}") for name, value in timings.items()])
    yield "\n# What was made"
    yield table(("", ""), [(name, f"{output}/{path}") for name, path in MADE.items()])
    yield f"\nCurves: tensorboard --logdir {output}/runs"


def shorten(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
