"""Rows of text for a model: [CLS] a [SEP], or [CLS] a [SEP] b [SEP], encoded once and kept as ids.

Tokenizers without these two tokens, such as that of GPT-2, have their tokens for the beginning and
the end of a text instead, or none.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tencentpretrain.config import ConfigError
from tencentpretrain.data.objectives.base import Example
from tencentpretrain.data.packing import Integers
from tencentpretrain.data.rows import Grid
from tencentpretrain.model import ModelConfig
from tencentpretrain.tasks.base import Inputs, TaskConfig
from tencentpretrain.types import Stream

log = logging.getLogger("tencentpretrain")

PAD_TO: Final = 8
"""Rows are padded to the longest of their batch, rounded up to a multiple of this."""
ENOUGH: Final = 64
"""Characters that surely hold a token; what is longer than so many for each is not tokenised."""
AT_ONCE: Final = 1 << 20
"""Characters that are tokenised together; tokenizers need a hundred bytes for each."""


class TextConfig(TaskConfig):
    """Keys of the tasks that read text."""

    length: Annotated[int, Field(ge=8)] = 128
    """Greatest length of a row, in tokens, special tokens included; longer texts are cut."""
    text_a_column: str = "text_a"
    """Name of the column that holds the text."""
    label_column: str = "label"
    """Name of the column that holds the label."""


def check_length(length: int, model: ModelConfig) -> None:
    """Refuse rows that are longer than a table of positions.

    Raises:
        ConfigError: naming the table.
    """
    for name, part in model.embedding.parts.items():
        table = getattr(part, "length", None)
        if isinstance(table, int) and table < length:
            raise ConfigError.at(
                "task.length",
                f"must be at most model.embedding.parts.{name}.length={table}, but is {length}",
            )


@dataclass(frozen=True)
class Ragged:
    """Rows of integers of different lengths in one array.

    Args:
        flat: All rows, one behind the other.
        ends: [N + 1] where each row ends in `flat`, after a 0.
    """

    flat: NDArray[np.int32]
    ends: Integers

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.flat[self.ends[index] : self.ends[index + 1]]

    @property
    def lengths(self) -> Integers:
        """Length [N] of each row."""
        return np.diff(self.ends)


class RaggedBuilder:
    """Collects rows in the memory that their numbers need, not that of Python's objects."""

    def __init__(self) -> None:
        self._flat, self._ends = array("i"), array("q", [0])

    def append(self, row: Iterable[int]) -> None:
        """Add a row of integers below 2^31."""
        self._flat.extend(row)
        self._ends.append(len(self._flat))

    def build(self) -> Ragged:
        """All rows so far."""
        return Ragged(np.array(self._flat, np.int32), np.array(self._ends, np.int64))


@dataclass(frozen=True)
class TextRows:
    """Encoded rows, and how they are put together.

    Args:
        ids: Token ids of each row, special ones included.
        seconds: [N] where the second text of a row begins; its length where there is none.
        pad: Id of padding.
        length: Greatest length of a row.
    """

    ids: Ragged
    seconds: Integers
    pad: int
    length: int

    def __len__(self) -> int:
        return len(self.ids)

    def make(self, index: int) -> Example:
        """Row number `index`: "ids" [S] and "segments" [S]."""
        ids = self.ids[index]
        return {"ids": ids, "segments": np.arange(len(ids)) >= self.seconds[index]}

    def stream(self, examples: Sequence[Example]) -> Stream:
        """Put rows together into a grid [B, S]."""
        rows = {key: [example[key] for example in examples] for key in ("ids", "segments")}
        grid = Grid(rows["ids"], PAD_TO, self.length)
        inputs = {
            "ids": grid.fill(rows["ids"], self.pad),
            "segments": grid.fill(rows["segments"], 0),
        }
        return Stream(inputs, grid.layout())


class RowFormat:
    """How texts become a row of at most `length` tokens.

    Args:
        inputs: The model and the tokenizer that rows are made for.
        length: In tokens.
    """

    def __init__(self, inputs: Inputs, length: int) -> None:
        self.tokenizer = tokenizer = inputs.text_tokenizer()
        self.length = length
        start = tokenizer.cls if tokenizer.cls is not None else tokenizer.bos
        end = tokenizer.sep if tokenizer.sep is not None else tokenizer.eos
        self._start = [] if start is None else [start]
        self._end = [] if end is None else [end]
        unknown = 0 if tokenizer.unk is None else tokenizer.unk
        # A row must not be empty: there would be nothing to attend to.
        self._nothing = [] if self._start or self._end else [unknown]
        types = [getattr(part, "types", None) for part in inputs.model.embedding.parts.values()]
        self._has_segments = all(count is None or count > 1 for count in types)

    def room(self, texts: int) -> int:
        """Tokens of a row beside the special ones."""
        return self.length - len(self._start) - texts * len(self._end)

    def singles(self, texts: Sequence[str]) -> TextRows:
        """Rows of one text each, cut at the end."""
        room, cut, rows = self.room(1), 0, RaggedBuilder()
        for ids in self._encode(texts):
            cut += len(ids) > room
            rows.append([*self._start, *(ids[:room] or self._nothing), *self._end])
        return self._finish(rows, cut)

    def pairs(self, first: Sequence[str], second: Sequence[str]) -> TextRows:
        """Rows of two texts each; the longer one is cut until both fit."""
        room, cut, rows, seconds = self.room(2), 0, RaggedBuilder(), array("q")
        for a, b in zip(self._encode(first), self._encode(second), strict=True):
            cut += len(a) + len(b) > room
            kept = min(len(b), max(room // 2, room - len(a)))
            head = [*self._start, *a[: room - kept], *self._end]
            seconds.append(len(head))
            rows.append([*head, *b[:kept], *self._end] or self._nothing)
        return self._finish(rows, cut, np.array(seconds, np.int64))

    def sentences(self, sentences: Sequence[Sequence[str]]) -> tuple[TextRows, Ragged]:
        """Rows of one sentence each, given as words, and where the words in them begin.

        Words that begin behind the end of the row have no place.
        """
        room, cut, rows, places = self.room(1), 0, RaggedBuilder(), RaggedBuilder()
        for words in sentences:
            pieces = self.tokenizer.encode_words(words) if words else []
            begins = np.cumsum([len(self._start), *map(len, pieces)])
            ids = list(chain.from_iterable(pieces))
            cut += len(ids) > room
            places.append(begins[:-1][begins[:-1] < len(self._start) + room].tolist())
            rows.append([*self._start, *(ids[:room] or self._nothing), *self._end])
        return self._finish(rows, cut), places.build()

    def _finish(self, rows: RaggedBuilder, cut: int, seconds: Integers | None = None) -> TextRows:
        """The rows, of which `cut` were too long; `seconds` is where second texts begin."""
        ids = rows.build()
        if cut:
            log.info(
                f"{cut:,} of {len(ids):,} rows ({cut / len(ids):.1%}) are longer than "
                f"task.length={self.length} tokens and are cut"
            )
        if seconds is None or not self._has_segments:
            seconds = ids.lengths
        pad = self.tokenizer.pad
        return TextRows(ids, seconds, 0 if pad is None else pad, self.length)

    def _encode(self, texts: Sequence[str]) -> Iterator[list[int]]:
        limit = ENOUGH * max(self.length, 1024)
        for batch in _batched(text[:limit] for text in texts):
            yield from self.tokenizer.encode_batch(batch)


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    """Cut `texts` into lists of about `AT_ONCE` characters."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
