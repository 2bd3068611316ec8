"""Lines of a file as rows of a model, some at a time: memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tencentpretrain.data.rows import Grid
from tencentpretrain.errors import DataError
from tencentpretrain.problems import nothing_at
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tasks.text import ENOUGH, PAD_TO
from tencentpretrain.tools.saved_model import SavedModel
from tencentpretrain.train.precision import autocast
from tencentpretrain.types import Batch, Stream

T = TypeVar("T")

AT_ONCE: Final = 2048
"""Lines that are in memory together; those of similar length share batches."""


class Line(NamedTuple):
    """One line of a file, and its number, from 1."""

    number: int
    text: str


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a UTF-8 file one after another, blank ones too; LF and CRLF end a line.

    Raises:
        DataError: at once if there is no such file or it is empty; while reading if it is no text.
    """
    if not path.is_file():
        raise DataError(f"{path} {'is not a file' if path.exists() else nothing_at(path)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a file with at least one line")
    return _lines(path)


def _lines(path: Path) -> Iterator[Line]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}, byte {error.start + 1} is not UTF-8; convert the file"
                ) from error
            if "\0" in text:
                raise DataError(f"{path}, line {number} holds NUL; convert the file to UTF-8")
            yield Line(number, text)


def in_parts(items: Iterator[T]) -> Iterator[list[T]]:
    """`items` in lists of `AT_ONCE`."""
    while part := list(islice(items, AT_ONCE)):
        yield part


class TextFormat:
    """How token ids become rows: [cls] ids [sep], or what else begins and ends the texts.

    Args:
        saved: whose rows they are.
        length: of a row at most, special tokens included.
    """

    def __init__(self, saved: SavedModel, length: int) -> None:
        self.tokenizer = tokenizer = saved.text_tokenizer()
        self.length = length
        start = tokenizer.cls if tokenizer.cls is not None else tokenizer.bos
        end = tokenizer.sep if tokenizer.sep is not None else tokenizer.eos
        self.start = [] if start is None else [start]
        self.end = [] if end is None else [end]
        self.room = length - len(self.start) - len(self.end)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; of a text far beyond the length only the beginning is tokenised."""
        limit = ENOUGH * max(self.length, 1024)
        return self.tokenizer.encode_batch([text[:limit] for text in texts])

    def row(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """The row of a text, cut where it is too long; never empty."""
        unknown = 0 if self.tokenizer.unk is None else self.tokenizer.unk
        nothing = [] if self.start or self.end else [unknown]
        return np.array([*self.start, *(ids[: self.room] or nothing), *self.end], np.int64)

    def batch(self, rows: Sequence[NDArray[np.int64]]) -> tuple[Batch, Grid]:
        """Put rows together into the stream "src", padded behind their ends."""
        grid = Grid(rows, PAD_TO, self.length)
        pad = 0 if self.tokenizer.pad is None else self.tokenizer.pad
        stream = Stream({"ids": grid.fill(rows, pad)}, grid.layout())
        return Batch({"src": stream}, tokens=grid.tokens), grid


def run_sorted(
    rows: Sequence[NDArray[Any]],
    machine: Machine,
    compute: Callable[[list[int]], Sequence[T]],
) -> list[T]:
    """What `compute` says of each row, in their order; rows of similar length are batched.

    Args:
        rows: anything with a length.
        machine: device, precision and batch size.
        compute: from the numbers of the rows of a batch to one result for each of them.
    """
    order = np.argsort([-len(row) for row in rows], kind="stable").tolist()
    results: list[T] = []
    with torch.inference_mode(), autocast(machine.dtype, machine.device):
        for first in range(0, len(order), machine.batch_size):
            results += compute(order[first : first + machine.batch_size])
    return [results[place] for place in np.argsort(order)]
