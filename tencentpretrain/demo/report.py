"""What the demonstration tells at its end: predictions beside the truth, in small tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tencentpretrain.demo.datasets import Row
from tencentpretrain.errors import DataError


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
