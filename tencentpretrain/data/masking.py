"""Which tokens of a row are hidden from the model, and what stands in their place.

The text itself is never changed: masks are drawn over the tokens as they are, each time a row is
read. Special tokens, [unk] included, are neither hidden nor used as replacements.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from tencentpretrain.config import Config, PositiveInt, check

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class MaskingConfig(Config):
    """Keys that an objective with masks has."""

    mask_rate: Fraction = 0.15
    """Part of the tokens of a row, special ones not counted, that is supervised."""
    masking: Literal["token", "word", "span"] = "token"
    """What is hidden as one: a `token`, all tokens of a `word`, or a `span` of several tokens."""
    mask_token_rate: Share = 0.8
    """Part of the supervised tokens (or spans) that the mask token replaces."""
    random_token_rate: Share = 0.1
    """Part of the supervised tokens (or spans) that random tokens replace; the rest is kept."""
    span_p: Fraction = 0.2
    """Parameter of the geometric distribution of span lengths; smaller makes longer spans."""
    max_span: PositiveInt = 10
    """Greatest length of a span, in tokens."""

    @check("mask_token_rate", "random_token_rate")
    def _rates(self) -> str | None:
        total = self.mask_token_rate + self.random_token_rate
        if total <= 1 + 1e-9:
            return None
        return f"mask_token_rate + random_token_rate must be at most 1, but is {total:g}"


class MaskingVocabulary(Protocol):
    """What masking asks of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def mask(self) -> int | None: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def continues(self) -> Flags: ...


def count_masked(tokens: int, rate: float) -> int:
    """How many of `tokens` are supervised: the nearest to `rate`, but at least one of any."""
    return min(tokens, max(1, int(tokens * rate + 0.5)))


def span_limits(p: float, longest: int) -> NDArray[np.float64]:
    """Cumulative probabilities of the span lengths 1 to `longest`: geometric, cut off, rescaled."""
    limits = 1.0 - np.power(1.0 - p, np.arange(1.0, longest + 1.0))
    return np.asarray(limits / limits[-1], np.float64)


def span_lengths(budget: int, limits: NDArray[np.float64], random: Generator) -> Ids:
    """Lengths drawn from `limits` that add up to `budget`, for which the last one is clipped.

    Joshi et al. (2020), SpanBERT, section 3.1.
    """
    lengths = limits.searchsorted(random.random(budget), side="right") + 1
    ends = lengths.cumsum()
    last = int(ends.searchsorted(budget))
    lengths[last] -= ends[last] - budget
    clipped: Ids = lengths[: last + 1]
    return clipped


def place_spans(lengths: Ids, tokens: int, random: Generator) -> Ids:
    """Starts of spans in a row of `tokens`: any placement without overlap is equally likely.

    Neighbours are also kept one token apart, unless too little of the row is left free.
    """
    count = len(lengths)
    free = tokens - int(lengths.sum())
    apart = 1 if count <= free + 1 else 0
    # Shrink each span to one slot, choose the slots, and let the spans grow again.
    slots = free + count - apart * (count - 1)
    chosen = np.sort(random.random(slots).argsort()[:count])
    grown = lengths + (apart - 1)
    starts: Ids = chosen + grown.cumsum() - grown
    return starts


class Masker:
    """Draws masks.

    Args:
        config: rates and the kind of masking.
        vocabulary: a tokenizer that has a mask token.
    """

    def __init__(self, config: MaskingConfig, vocabulary: MaskingVocabulary) -> None:
        if vocabulary.mask is None:
            raise ValueError("masking needs a tokenizer with a mask token")
        self._config: Final = config
        self._mask = vocabulary.mask
        self._maskable = np.ones(vocabulary.vocab_size, np.bool_)
        self._maskable[list(vocabulary.special_ids)] = False
        self._ordinary = self._maskable.nonzero()[0]
        self._limits = span_limits(config.span_p, config.max_span)
        self._begins = ~np.asarray(vocabulary.continues, np.bool_)

    def __call__(
        self, ids: Ids, random: Generator, word_starts: Flags | None = None
    ) -> tuple[Ids, Ids]:
        """Hide a part of a row.

        Args:
            ids: [S] the row with its special tokens; it is left as it is.
            random: source of all choices.
            word_starts: [S] whether a word of the stored segmentation starts here; without it,
                words are what the tokenizer's pieces say.

        Returns:
            What the model reads [S], and the positions that are supervised [K], ascending.
        """
        positions = self._maskable[ids].nonzero()[0]
        if not len(positions):
            return ids, positions
        budget = count_masked(len(positions), self._config.mask_rate)
        if self._config.masking == "span":
            chosen, unit = self._spans(positions, budget, random)
        else:
            if self._config.masking == "word":
                begins = self._begins[ids] if word_starts is None else word_starts
                chosen = choose_words(word_numbers(positions, begins), budget, random)
            else:
                chosen = np.sort(random.random(len(positions)).argsort()[:budget])
            unit = np.arange(len(chosen))
        index = positions[chosen]
        return self._replace(ids, index, unit, random), index

    def _spans(self, positions: Ids, budget: int, random: Generator) -> tuple[Ids, Ids]:
        """Chosen elements of `positions` and the number of the span that each is in."""
        lengths = span_lengths(budget, self._limits, random)
        starts = place_spans(lengths, len(positions), random)
        first = np.zeros(budget, np.bool_)
        offsets = lengths.cumsum() - lengths
        first[offsets] = True
        chosen = np.arange(budget) + (starts - offsets).repeat(lengths)
        # The row is turned by a random amount, or its ends would be hidden less often. A span
        # that now goes over the end becomes two, as does one that meets a special token: those
        # are no part of `positions`.
        turn = int(random.random() * len(positions))
        stay = int(chosen.searchsorted(len(positions) - turn))
        chosen = np.concatenate((chosen[stay:] - len(positions), chosen[:stay])) + turn
        first = np.concatenate((first[stay:], first[:stay]))
        first[0] = True
        index = positions[chosen]
        first[1:] |= index[1:] != index[:-1] + 1
        return chosen, first.cumsum() - 1

    def _replace(self, ids: Ids, index: Ids, unit: Ids, random: Generator) -> Ids:
        """Replace 80 % of the units by the mask token and 10 % by random ones, as configured."""
        config = self._config
        draw = random.random(int(unit[-1]) + 1)[unit]
        inputs = ids.copy()
        inputs[index[draw < config.mask_token_rate]] = self._mask
        other = draw >= config.mask_token_rate
        other &= draw < config.mask_token_rate + config.random_token_rate
        replaced = index[other]
        choice = random.random(len(replaced)) * len(self._ordinary)
        inputs[replaced] = self._ordinary[choice.astype(np.int64)]
        return inputs


def word_numbers(positions: Ids, begins: Flags) -> Ids:
    """Number of the word of each of `positions`; `begins` [S] tells where words start in the row.

    A word also starts behind a special token, since words are cut where documents are.
    """
    starts = begins[positions]
    starts[0] = True
    starts[1:] |= positions[1:] != positions[:-1] + 1
    numbers: Ids = starts.cumsum() - 1
    return numbers


def choose_words(words: Ids, budget: int, random: Generator) -> Ids:
    """Elements of `words` [N], numbers as of `word_numbers`, that lie in randomly chosen words.

    Words that would exceed `budget` are skipped, so that the number of tokens is as near to it as
    whole words allow; where no word fits, it is one of the shortest.
    """
    lengths = np.bincount(words)
    order = random.random(len(lengths)).argsort()
    shuffled = lengths[order]
    # All words up to the first that does not fit; then, one at a time, those that still do.
    fitting = int(shuffled.cumsum().searchsorted(budget, side="right"))
    taken = np.zeros(len(lengths), np.bool_)
    taken[order[:fitting]] = True
    left = budget - int(shuffled[:fitting].sum())
    rest = fitting
    while left:
        fits = shuffled[rest:] <= left
        found = int(fits.argmax()) if len(fits) else 0
        if not len(fits) or not fits[found]:
            break
        taken[order[rest + found]] = True
        left -= int(shuffled[rest + found])
        rest += found + 1
    if left == budget:
        taken[order[int(shuffled.argmin())]] = True
    return taken[words].nonzero()[0]
