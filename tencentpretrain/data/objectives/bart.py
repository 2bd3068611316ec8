"""Text infilling and sentence permutation (Lewis et al., 2020, BART, sections 2.2 and 5.1)."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tencentpretrain.config import PositiveFloat, check
from tencentpretrain.data.masking import Fraction, Share, count_masked, place_spans, span_lengths
from tencentpretrain.data.objectives.base import OBJECTIVES, Example
from tencentpretrain.data.objectives.denoise import DenoiseObjective, Edge, SentenceRows
from tencentpretrain.data.objectives.seq2seq import Seq2SeqConfig
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import Integers
from tencentpretrain.data.spans import poisson_limits, replace_spans, span_tokens

ENDS: Final = 2
"""[bos] and [eos] of a row."""


@OBJECTIVES.register("bart")
class BartObjective(DenoiseObjective):
    """The source has its sentences in another order and masks for spans; the target is the text.

    Both stand between [bos] and [eos], and the decoder begins with [eos]. The lengths of spans are
    drawn from a Poisson distribution until `mask_rate` of the tokens are hidden, for which the
    last one is clipped. Each span becomes one mask, and spans of no token insert one. Where enough
    stays, other spans keep a token between them; the numbers of both are exact.
    Rows are whole sentences of one document, as many as fit, the same in each epoch. Each token is
    read once an epoch; only sentences longer than a row are cut.
    """

    class Config(Seq2SeqConfig):
        mask_rate: Fraction = 0.3
        """Part of the tokens of a row that is hidden."""
        mean_span: PositiveFloat = 3.0
        """Mean length of spans, in tokens, spans of no token included."""
        permute_rate: Share = 1.0
        """Part of the sentences of a row that change places with each other."""
        start: Edge = "eos"
        """Special token that the decoder starts from."""

        @check("length", "target_length")
        def _target_fits(self) -> str | None:
            if self.length <= self.target_length:
                return None
            return (
                f"target_length must be at least length={self.length}, since the target is the "
                f"whole text, but is {self.target_length}"
            )

    config: Config
    needs = ("mask",)

    def _prepare(self) -> None:
        self._mask, self._bos, self._eos = self.special("mask"), self.edge("bos"), self.edge("eos")
        self._start = self.edge(self.config.start)
        self._limits = poisson_limits(self.config.mean_span)
        self._room = self.config.length - ENDS
        self._rows = SentenceRows(self.shards, self.documents, self._room, self.seed)

    def __len__(self) -> int:
        return len(self._rows)

    def make(self, epoch: int, index: int) -> Example:
        text, ends = self._rows.read(index)
        random = generator(self.seed, epoch, index)
        source = self._infill(
            text[permute_sentences(ends, self.config.permute_rate, random)], random
        )
        return self.pair(self._enclose(source), self._enclose(text), self._start)

    def _infill(self, text: NDArray[np.integer], random: Generator) -> Integers:
        """`text` [N] with masks for spans."""
        budget = count_masked(len(text), self.config.mask_rate)
        lengths = span_lengths(budget, self._limits, random)
        starts = place_spans(lengths, len(text), random)
        source = replace_spans(text, starts, lengths, self._mask)
        # How many lengths of zero are drawn before as many greater ones.
        inserted = int(random.negative_binomial(len(lengths), -math.expm1(-self.config.mean_span)))
        inserted = min(inserted, self._room - len(source))
        gaps = np.sort(random.integers(0, len(source) + 1, inserted))
        return replace_spans(source, gaps, np.zeros_like(gaps), self._mask)

    def _enclose(self, text: NDArray[np.integer]) -> Integers:
        return np.concatenate(([self._bos], text, [self._eos]), dtype=np.int64)


def permute_sentences(ends: Integers, rate: float, random: Generator) -> Integers:
    """Where each token of a row comes from when a `rate` of its sentences are shuffled.

    Args:
        ends: [S] ends of the sentences, in tokens.
        rate: part of the sentences that take part; the others stay.
        random: source of the choice.
    """
    lengths = np.diff(ends, prepend=0)
    moved = random.permutation(len(ends))[: math.ceil(len(ends) * rate)]
    order = np.arange(len(ends))
    order[moved] = random.permutation(moved)
    return span_tokens((ends - lengths)[order], lengths[order])
