"""Long recordings in windows that overlap, and what was written of each made one text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

Ids = Sequence[int]
SLACK: Final = 2
"""Tokens beyond its share of a text that the overlap of two windows may have."""


def starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows begin, so that the last one reaches the end.

    Args:
        length: Of the recording.
        window: Length of one.
        overlap: What a window shares with the one before it; less than `window`.
    """
    count = 1 + max(0, math.ceil((length - window) / (window - overlap)))
    return [number * (window - overlap) for number in range(count)]


def join(texts: Sequence[Ids], share: float) -> list[list[int]]:
    """The texts of windows that follow each other, each token once: passages with gaps between.

    Two windows are one passage where the end of one and the beginning of the other say the same:
    what one says behind that and the other before it is the rest of a word that the border has
    cut. Of all runs of tokens that both have there, the one counts that is longest after
    subtracting what would be dropped. Where each would drop more than it holds, nothing is dropped
    and a new passage begins.

    Args:
        texts: Tokens of each window.
        share: Part of a window that it has in common with the one before it.
    """
    passages: list[list[int]] = []
    fresh = last = 0
    for text in texts:
        room = math.ceil(2 * share * max(last, len(text))) + SLACK
        tail = passages[-1][-min(room, fresh) :] if fresh else []
        met = _meeting(tail, text[:room])
        skipped = 0
        if met is None:
            passages += [[*text]] if text else []
        else:
            kept, skipped = met
            del passages[-1][len(passages[-1]) - len(tail) + kept :]
            passages[-1] += text[skipped:]
        fresh, last = len(text) - skipped, len(text)
    return passages


def _meeting(tail: Ids, head: Ids) -> tuple[int, int] | None:
    """How much of `tail` to keep and of `head` to skip, so that what both say is there once."""
    best, found = (0, 0), None
    runs = [0] * (len(head) + 1)
    for left, token in enumerate(tail, start=1):
        # From right to left, so that what is read is of the token before.
        for right in range(len(head), 0, -1):
            length = runs[right - 1] + 1 if head[right - 1] == token else 0
            runs[right] = length
            dropped = len(tail) - left + right - length
            if length and (length - dropped, length) > best:
                best, found = (length - dropped, length), (left, right)
    return found
