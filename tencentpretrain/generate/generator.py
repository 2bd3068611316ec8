"""Texts that a model writes for prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from tencentpretrain.config import nearest
from tencentpretrain.errors import DataError
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.engine import Engine
from tencentpretrain.generate.frame import Frame
from tencentpretrain.generate.rows import Ids, RowOptions
from tencentpretrain.generate.text import GrowingText, text_behind
from tencentpretrain.generate.written import Finish, Written
from tencentpretrain.model import Model
from tencentpretrain.tokenizers.base import Tokenizer

GREEDY: Final = Decoding()


@dataclass(frozen=True)
class Generation:
    """What was written for one prompt.

    Args:
        text: Without the token or string that ended it.
        ids: All new tokens.
        finish: Why it ended: "end" with one of the end tokens, "stop" before a string, "length" at
            the greatest number of tokens.
        score: Of a beam search: log-probability divided by the power of the length.
    """

    text: str
    ids: tuple[int, ...]
    finish: Finish
    score: float | None = None


class Generator:
    """A model that writes texts.

    Args:
        model: With a target `lm`, on its device.
        tokenizer: Of prompts.
        frame: What stands around a prompt; `find_frame` knows that of training.
        target_tokenizer: Of what is written, where it is another one.
        dtype: Of matrix products.
        is_cached: Whether what was computed of a position is kept, if the model can do so; never
            changes what is written.

    Raises:
        CheckpointError: if the model has no target that writes.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        frame: Frame,
        *,
        target_tokenizer: Tokenizer | None = None,
        dtype: torch.dtype = torch.float32,
        is_cached: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.writer = target_tokenizer or tokenizer
        self.frame = frame
        options = RowOptions(
            vocabulary=self.writer.vocab_size,
            has_prefix=frame.has_prefix,
            segment=frame.segment,
            is_cached=is_cached,
        )
        self._engine = Engine(model.eval(), start=frame.start, options=options, dtype=dtype)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The rows of prompts, as `generate_rows` takes them."""
        return [self.frame.around(ids) for ids in self.tokenizer.encode_batch(texts)]

    def check(self, rows: Sequence[Ids], numbers: Iterable[int]) -> None:
        """Refuse rows that the model cannot read.

        Raises:
            DataError: naming one by its number.
        """
        for row, number in zip(rows, numbers, strict=True):
            self._engine.check(row, number)

    def generate(
        self,
        prompts: Sequence[str],
        decoding: Decoding = GREEDY,
        *,
        numbers: Sequence[int] | None = None,
        report: Callable[[int, str], None] | None = None,
    ) -> list[Generation]:
        """What follows on each of `prompts`, computed as one batch.

        Args:
            prompts: Texts.
            decoding: How tokens are chosen.
            numbers: Of the prompts, from 0; what is drawn depends on the seed and the own number.
            report: Called with the place of a prompt and the next piece of its text; pieces are
                whole characters, and together they are the text.

        Raises:
            DataError: if a prompt cannot be read, or an end token is not in the vocabulary.
        """
        return self.generate_rows(self.encode(prompts), decoding, numbers=numbers, report=report)

    def generate_rows(
        self,
        rows: Sequence[Ids],
        decoding: Decoding = GREEDY,
        *,
        numbers: Sequence[int] | None = None,
        report: Callable[[int, str], None] | None = None,
    ) -> list[Generation]:
        """As `generate`, for prompts that are rows of ids already."""
        self.check(rows, range(len(rows)) if numbers is None else numbers)
        ends = self.ends(decoding)
        stop = [*decoding.stop, *self.frame.stop]
        written = []
        for row in rows:
            text = None
            if stop or report is not None:
                text = GrowingText(self.writer, self._context(row), stop)
            written.append(Written(self._engine.limit(row, decoding.max_new_tokens), ends, text))
        watch = None if report is None else _Reporter(report)
        self._engine.write(rows, written, decoding, numbers, watch)
        return [self._generation(*pair) for pair in zip(rows, written, strict=True)]

    def _generation(self, row: Ids, written: Written) -> Generation:
        ids = written.ids
        if written.text is None:
            said = ids[:-1] if written.finish == "end" else ids
            text = text_behind(self.writer, self._context(row), said)
        else:
            text = written.text.text
        assert written.finish is not None
        return Generation(text, tuple(ids), written.finish, written.score)

    def _context(self, row: Ids) -> Ids:
        return row if self.frame.is_continued else ()

    def ends(self, decoding: Decoding) -> list[int]:
        """Ids of the end tokens.

        Raises:
            DataError: if one is not in the vocabulary.
        """
        if decoding.end_tokens is None:
            return list(self.frame.ends)
        ends = []
        for token in decoding.end_tokens:
            number = self.writer.id(token)
            if number is None:
                names = (self.writer.token(n) for n in range(self.writer.vocab_size))
                hint = nearest(token, names)
                raise DataError(f"`{token}` of end_tokens is not in the vocabulary; {hint}")
            ends.append(number)
        return ends


class _Reporter:
    """Tells of each text what was not told before."""

    def __init__(self, report: Callable[[int, str], None]) -> None:
        self._report = report
        self._told: dict[int, int] = {}

    def __call__(self, written: Sequence[Written]) -> None:
        for place, row in enumerate(written):
            if row.text is None:
                continue
            told = self._told.get(place, 0)
            text = row.text.certain if row.is_open else row.text.text
            if len(text) > told:
                self._report(place, text[told:])
                self._told[place] = len(text)
