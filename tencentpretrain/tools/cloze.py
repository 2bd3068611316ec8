"""The likeliest words for the gaps in texts: what `scripts/cloze.py` does."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.config import PathLike, PositiveInt, check
from tencentpretrain.errors import DataError, before_start
from tencentpretrain.targets.mlm import MlmTarget
from tencentpretrain.tasks.answers import answer_lines
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.tools.outputs import check_file, write_lines
from tencentpretrain.tools.saved_model import SavedModel, ToolConfig, load_model
from tencentpretrain.tools.texts import Line, TextFormat, in_parts, read_lines, run_sorted
from tencentpretrain.types import Labels

log = logging.getLogger("tencentpretrain")

GAP: Final = "[MASK]"
"""How texts may write a gap, whatever the tokenizer calls its mask token."""
Gap = list[tuple[str, float]]
"""Words and their probabilities, the likeliest first."""


class ClozeConfig(ToolConfig):
    """Fill the gaps in texts."""

    text: str | None = None
    """One text with [MASK] for each gap; the answer is printed."""
    input: PathLike | None = None
    """File with a text a line, in the place of text."""
    output: PathLike | None = None
    """File for the answers to input: JSON lines (.jsonl), else TSV; null prints them."""
    overwrite: bool = False
    """Whether output may replace a file that is there."""
    top: PositiveInt = 5
    """Words for each gap."""
    length: PositiveInt | None = None
    """Greatest length of a text in tokens, special ones included; null is that of training."""

    @check("text", "input")
    def _one_source(self) -> str | None:
        if (self.text is None) == (self.input is None):
            return "either text or input must be given"
        return None

    @check("input", "output")
    def _output_has_input(self) -> str | None:
        if self.output is not None and self.input is None:
            return "output needs input; the answer to text is printed"
        return None


def run_cloze(config: ClozeConfig) -> int:
    """Fill the gaps as `config` says; returns the exit code."""
    with before_start():
        lines = _lines(config)
        machine = config.machine()
        filler = Filler(load_model(config, machine), machine, config.top, config.length)
        answers = filler.answers(lines)
        first = next(answers)  # a model that cannot answer at all is told before anything is made
    everything = chain([first], answers)
    if config.output is None:
        for answer in everything:
            print("\n".join(answer.report()), flush=True)
    else:
        records = (answer.record() for answer in everything)
        write_lines(config.output, answer_lines(config.output, records))
        log.info(f"{filler.counts['texts']:,} answers are in {config.output}")
    if filler.counts["without a gap"]:
        log.warning(f"{filler.counts['without a gap']:,} texts hold no {GAP}")
    return 0


def _lines(config: ClozeConfig) -> Iterator[Line]:
    """What to fill."""
    if config.input is None:
        return iter([Line(1, config.text or "")])
    if config.output is not None:
        check_file(config.output, config.overwrite, [config.input])
    return read_lines(config.input)


@dataclass(frozen=True)
class Answer:
    """What belongs into the gaps of one text."""

    line: Line
    gaps: list[Gap]

    def record(self) -> dict[str, Any]:
        """For a file; the text itself could hold what separates columns."""
        return {
            "line": self.line.number,
            "words": [[word for word, _ in gap] for gap in self.gaps],
            "probabilities": [[round(p, 6) for _, p in gap] for gap in self.gaps],
        }

    def report(self) -> Iterator[str]:
        """For people."""
        yield self.line.text
        for number, gap in enumerate(self.gaps, start=1):
            yield f"  {number}: " + "  ".join(f"{word} {p:.4f}" for word, p in gap)


@dataclass
class Filler:
    """Fills gaps with the head that the model was trained with.

    Args:
        saved: a model that has learned masked words.
        machine: how it is run.
        top: words for each gap.
        length: of a text at most, in tokens; None is that of training.

    Raises:
        CheckpointError: if the model has not learned masked words.
        ConfigError: if the model cannot read rows of `length`.
    """

    saved: SavedModel
    machine: Machine
    top: int
    length: int | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._name, self._target = self.saved.target(MlmTarget, "guess masked words")
        self._format = TextFormat(self.saved, self.saved.length(self.length))
        self._tokenizer = self.saved.text_tokenizer()
        self._mask = self._tokenizer.require("mask")
        names = {GAP, self._tokenizer.token(self._mask)}
        self._gap = re.compile("|".join(map(re.escape, sorted(names))))

    def answers(self, lines: Iterable[Line]) -> Iterator[Answer]:
        """One answer for each line.

        Raises:
            DataError: naming a line that is longer than the model reads.
        """
        for part in in_parts(iter(lines)):
            rows = [self._row(line) for line in part]
            is_open = [bool((row == self._mask).any()) for row in rows]
            open_rows = [row for row, has_gap in zip(rows, is_open, strict=True) if has_gap]
            filled = iter(run_sorted(open_rows, self.machine, partial(self._fill, open_rows)))
            for line, has_gap in zip(part, is_open, strict=True):
                self.counts["texts"] += 1
                self.counts["without a gap"] += not has_gap
                yield Answer(line, next(filled) if has_gap else [])

    def _row(self, line: Line) -> NDArray[np.int64]:
        """The row of a text: what is around the gaps is tokenised by itself.

        Space before a gap belongs to the word that is to be guessed.
        """
        parts = self._gap.split(line.text)
        texts = [*(part.rstrip() for part in parts[:-1]), parts[-1]]
        encoded = self._tokenizer.encode_batch(texts)
        ids = list(chain.from_iterable([self._mask, *piece] for piece in encoded))[1:]
        if len(ids) > self._format.room:
            raise DataError(
                f"line {line.number} has {len(ids)} tokens, but the model reads "
                f"{self._format.room} in a row; shorten it, or raise length"
            )
        return self._format.row(ids)

    def _fill(self, rows: list[NDArray[np.int64]], numbers: list[int]) -> list[list[Gap]]:
        """The gaps of those of `rows`."""
        chosen = [rows[number] for number in numbers]
        batch, grid = self._format.batch(chosen)
        index = [np.flatnonzero(row == self._mask) for row in chosen]
        places = grid.flat(index)
        # Only where the labels say so are scores computed; what they are does not matter here.
        batch.labels[self._name] = Labels(places, places)
        batch = batch.to(self.machine.device)
        words = iter(self._words(self._target.logits(self.saved.model.encode(batch), batch)))
        return [[next(words) for _ in row] for row in index]

    def _words(self, logits: Tensor) -> list[Gap]:
        """The likeliest words under each row of `logits` [K, V]."""
        probabilities = logits.float().softmax(-1)
        # A table may have more rows than the vocabulary has entries.
        known = probabilities[:, : self._tokenizer.vocab_size]
        best = torch.topk(known, min(self.top, known.shape[1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            [(readable(self._tokenizer, i), p) for i, p in zip(*pair, strict=True)]
            for pair in pairs
        ]


def readable(tokenizer: Tokenizer, id: int) -> str:
    """An entry as text; as it is in the vocabulary where that says more."""
    piece = tokenizer.token(id)
    if id in tokenizer.special_ids:
        return piece
    return tokenizer.decode([id]).strip() or piece
