"""Span corruption (Raffel et al., 2020, T5, section 3.1.4 and figure 2)."""

from __future__ import annotations

from typing import Annotated, Final

import numpy as np
from pydantic import Field

from tencentpretrain.config import check
from tencentpretrain.data.masking import Fraction
from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Vocabulary
from tencentpretrain.data.objectives.denoise import DenoiseObjective, Edge
from tencentpretrain.data.objectives.seq2seq import Seq2SeqConfig
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import DocumentPieces, DocumentStream, Integers
from tencentpretrain.data.spans import (
    count_noise,
    fitting_tokens,
    random_segments,
    replace_spans,
)
from tencentpretrain.errors import DataError

USUAL: Final = ("<extra_id_{}>", "[extra_id_{}]", "▁<extra_id_{}>")
"""How sentinels are written in published vocabularies."""
ENDS: Final = 2
"""Tokens of a target behind the last span: the final sentinel and [eos]."""


@OBJECTIVES.register("t5")
class T5Objective(DenoiseObjective):
    """Spans of the source become a sentinel each; the target has each sentinel and its span.

    Source "Thank you <0> me to your party <1> week [eos]", target "<0> for inviting <1> last <2>
    [eos]". Rows begin with a token that stays and end with a span, as in the published code.
    A row is read of as many tokens as, corrupted, fill `length`. Unless packed, it is a part of
    one document and the same in each epoch; packed, the rows of an epoch partition a stream of
    documents that begins elsewhere in every epoch. Each token is read once an epoch.
    """

    class Config(Seq2SeqConfig):
        mask_rate: Fraction = 0.15
        """Part of the tokens of a row that is hidden and to be written."""
        mean_span: Annotated[float, Field(ge=1)] = 3.0
        """Mean length of the hidden spans, in tokens."""
        pack: bool = False
        """Fill rows across the borders of documents, without a mark between them."""
        sentinel: str | None = None
        """Sentinels as the vocabulary writes them, {} for the number; null finds <extra_id_{}>."""
        start: Edge = "pad"
        """Special token that the decoder starts from."""

        @check("length", "target_length", "mask_rate", "mean_span")
        def _target_fits(self) -> str | None:
            noise, spans = count_noise(self.tokens, self.mask_rate, self.mean_span)
            needed = noise + spans + ENDS
            if needed <= self.target_length:
                return None
            return (
                f"target_length must be at least {needed} for what length={self.length}, "
                f"mask_rate={self.mask_rate:g} and mean_span={self.mean_span:g} hide, but is "
                f"{self.target_length}"
            )

        @check("sentinel")
        def _sentinel_has_a_number(self) -> str | None:
            if self.sentinel is None or self.sentinel.count("{}") == 1:
                return None
            return f"sentinel must have {{}} once, for the number, but is `{self.sentinel}`"

        @property
        def tokens(self) -> int:
            """Greatest length of a row before corruption: it leaves room for [eos]."""
            return fitting_tokens(self.length - 1, self.mask_rate, self.mean_span)

    config: Config

    def _prepare(self) -> None:
        config = self.config
        self._tokens = config.tokens
        self._eos, self._start = self.edge("eos"), self.edge(config.start)
        needed = count_noise(self._tokens, config.mask_rate, config.mean_span)[1] + 1
        self._sentinels = find_sentinels(self.tokenizer, config.sentinel, needed)
        self._stream = DocumentStream(self.shards, self.documents)
        self._pieces = DocumentPieces(self.shards, self.documents, self._tokens)

    def __len__(self) -> int:
        return -(-self._stream.total // self._tokens) if self.config.pack else len(self._pieces)

    def make(self, epoch: int, index: int) -> Example:
        text = self._text(epoch, index)
        random = generator(self.seed, epoch, index)
        noise, spans = count_noise(len(text), self.config.mask_rate, self.config.mean_span)
        hidden = random_segments(noise, spans, random)
        kept = np.zeros(1, np.int64)  # of the row of one token, which is hidden
        if noise < len(text):
            kept = random_segments(len(text) - noise, spans, random)
        ends = (kept + hidden).cumsum()
        sentinels = self._sentinels[: spans + 1]
        source = replace_spans(text, ends - hidden, hidden, sentinels[:-1])
        # The same seen from the other side: what stays becomes one sentinel before each span.
        target = replace_spans(text, ends - hidden - kept, kept, sentinels[:-1])
        return self.pair(
            np.append(source, self._eos), np.append(target, (sentinels[-1], self._eos)), self._start
        )

    def _text(self, epoch: int, index: int) -> Integers:
        if not self.config.pack:
            return self._pieces.read(index)[0]
        start = index * self._tokens
        count = min(self._tokens, self._stream.total - start)
        offset = self._stream.offset(self.seed, epoch)
        return self._stream.read(self._stream.pieces(offset + start, count)).ids


def find_sentinels(tokenizer: Vocabulary, pattern: str | None, needed: int) -> Integers:
    """Ids of sentinels 0 (or 1, where the vocabulary counts from there), 1, ... [needed].

    Args:
        tokenizer: where they are looked up by their text, so that their ids are in any order.
        pattern: how they are written, with {} for the number; None tries what is usual.
        needed: how many there must be.

    Raises:
        DataError: if the vocabulary has fewer.
    """
    found: list[int] = []
    patterns = USUAL if pattern is None else (pattern,)
    for written in patterns:
        first = 0 if tokenizer.id(written.replace("{}", "0")) is not None else 1
        ids = (tokenizer.id(written.replace("{}", str(first + n))) for n in range(needed))
        listed = [number for number in ids if number is not None]
        found = max(found, listed, key=len)
    if len(found) < needed:
        names = ", ".join(f"`{written.replace('{}', '0')}`" for written in patterns)
        raise DataError(
            f"objective `t5` needs {needed} sentinels for rows of this length, but the vocabulary "
            f"has {len(found)} written as {names}, ...; preprocess with a vocabulary that has "
            "them, name its own in model.objective.sentinel, or hide fewer, longer spans "
            "(model.objective.length, mask_rate and mean_span)"
        )
    return np.array(found, np.int64)
