"""What was written for one prompt so far, and whether that is all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

from tencentpretrain.generate.text import GrowingText

Finish = Literal["end", "stop", "length"]
"""Why a text ended: with a token that ends texts, before a string that stops it, at its limit."""


class Written:
    """The new tokens of a row.

    Args:
        limit: Greatest number of them.
        ends: Ids that end it.
        text: Where the text is needed while it grows.
    """

    def __init__(
        self, limit: int, ends: Collection[int] = (), text: GrowingText | None = None
    ) -> None:
        self.limit = limit
        self.ends = frozenset(ends)
        self.text = text
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self.score: float | None = None
        """Of a beam search: log-probability divided by the power of the length."""

    def push(self, tokens: Iterable[int]) -> None:
        """Add `tokens`, up to the one that ends the row."""
        for token in tokens:
            if self.finish is not None:
                return
            self.ids.append(token)
            self.finish = self._finish(token)
        if self.finish is not None and self.text is not None:
            self.text.finish()

    def _finish(self, token: int) -> Finish | None:
        if token in self.ends:
            return "end"
        if self.text is not None:
            self.text.push(token)
            if self.text.is_stopped:
                return "stop"
        return "length" if len(self.ids) == self.limit else None

    @property
    def is_open(self) -> bool:
        return self.finish is None
