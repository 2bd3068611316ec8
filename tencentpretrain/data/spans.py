"""Spans of a row: drawing them, and putting one token in the place of each.

Shapes: N tokens of a row, n spans. Spans are given by their starts and lengths [n], ascending and
without overlap; a span of no token stands before the token at its start.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tencentpretrain.data.packing import Integers


def count_noise(tokens: int, rate: float, mean: float) -> tuple[int, int]:
    """How many of `tokens` are hidden, and in how many spans.

    As in Raffel et al. (2020), section 3.1.4, and their code: the nearest to `rate` and to a
    length of `mean`, but at least one span, and between any two a token that stays. The one token
    of the shortest row is hidden.
    """
    noise = min(max(round(tokens * rate), 1), max(tokens - 1, 1))
    spans = min(max(round(noise / mean), 1), max(tokens - noise, 1))
    return noise, spans


def fitting_tokens(room: int, rate: float, mean: float) -> int:
    """Greatest number of tokens that are at most `room` once each span is a single token.

    Another token makes the corrupted row longer by one or not at all, so that it has exactly
    `room` tokens, except where so much is hidden that spans stand behind every token that stays.
    """
    tokens = 1
    while True:
        noise, spans = count_noise(tokens + 1, rate, mean)
        if tokens + 1 - noise + spans > room:
            return tokens
        tokens += 1


def random_segments(items: int, segments: int, random: Generator) -> Integers:
    """Lengths [segments] of at least one that add up to `items`; all such are equally likely."""
    borders = np.sort(random.random(items - 1).argsort()[: segments - 1]) + 1
    lengths: Integers = np.diff(borders, prepend=0, append=items)
    return lengths


def poisson_limits(mean: float) -> NDArray[np.float64]:
    """Cumulative probabilities of the lengths 1, 2, ... of a Poisson distribution without its 0."""
    longest = math.ceil(mean + 10 * math.sqrt(mean) + 10)
    lengths = np.arange(1.0, longest + 1.0)
    limits = np.exp(lengths * math.log(mean) - mean - np.log(lengths).cumsum()).cumsum()
    return np.asarray(limits / limits[-1], np.float64)


def span_tokens(starts: Integers, lengths: Integers) -> Integers:
    """Positions of the tokens of spans, one span after another, in any order of the spans."""
    behind = lengths.cumsum()
    total = int(behind[-1]) if len(behind) else 0
    positions: Integers = np.arange(total) + (starts - behind + lengths).repeat(lengths)
    return positions


def replace_spans(
    ids: NDArray[Any], starts: Integers, lengths: Integers, marks: Integers | int
) -> Integers:
    """`ids` [N] with one of `marks` in the place of each span; of no token, it is inserted."""
    stays = np.ones(len(ids), np.bool_)
    stays[span_tokens(starts, lengths)] = False
    places = starts - lengths.cumsum() + lengths + np.arange(len(starts))
    is_text = np.ones(int(stays.sum()) + len(starts), np.bool_)
    is_text[places] = False
    replaced = np.empty(len(is_text), np.int64)
    replaced[is_text] = ids[stays]
    replaced[places] = marks
    return replaced
