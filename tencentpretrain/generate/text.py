"""Text that grows with its tokens: never half a character, and cut where it is to stop."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Final

from tencentpretrain.tokenizers.base import Tokenizer

HALF: Final = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers write for bytes that are no whole character, or not yet."""
CONTEXT: Final = 8
"""Tokens of a prompt that are decoded with what follows, since these decide on a space between."""


def text_behind(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """What `ids` say behind `prompt`; the same that `GrowingText` says of them one by one."""
    context = _context(tokenizer, prompt)
    before = len(tokenizer.decode(context)) if context else 0
    return tokenizer.decode([*context, *ids])[before:]


def _context(tokenizer: Tokenizer, prompt: Sequence[int]) -> list[int]:
    """The end of `prompt`, as far as it decides on what is between it and what follows."""
    told = [number for number in prompt[-2 * CONTEXT :] if number not in tokenizer.special_ids]
    return told[-CONTEXT:]


class GrowingText:
    """What the tokens of a row say, decoded piece by piece.

    Only a window is decoded: the tokens since the last whole character and those of the step
    before, which decide whether a space comes between.

    Args:
        tokenizer: Of the tokens.
        prompt: Ids that the text goes on with; none if it stands by itself.
        stop: Strings that the text ends before.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._specials = tokenizer.special_ids
        self._stop = tuple(stop)
        self._window = _context(tokenizer, prompt)
        self._old = len(self._window)
        self._skip = len(self._decode()) if self._window else 0
        self._settled = ""
        self.text = ""
        """All whole characters so far; what stops the text and what follows it is cut off."""
        self.is_stopped = False

    @property
    def may_stop(self) -> bool:
        """Whether there are strings that the text ends before."""
        return bool(self._stop)

    def push(self, token: int) -> None:
        """Add what `token` says."""
        if self.is_stopped or token in self._specials:
            return
        self._window.append(token)
        decoded = self._decode()
        whole = decoded.rstrip(HALF)
        self._grow(whole)
        if whole == decoded and len(decoded) > self._skip:
            self._settled += decoded[self._skip :]
            del self._window[: self._old]
            self._old = len(self._window)
            self._skip = len(self._decode())

    def with_(self, token: int) -> GrowingText:
        """This text and `token`; this one stays what it is."""
        other = copy(self)
        other._window = [*self._window]
        other.push(token)
        return other

    def finish(self) -> None:
        """No token follows: bytes that are no whole character stay what they are."""
        if not self.is_stopped:
            self._grow(self._decode())

    @property
    def certain(self) -> str:
        """The beginning of the text that no later token can cut off."""
        if self.is_stopped or not self._stop:
            return self.text
        longest = max(map(len, self._stop)) - 1
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(string.startswith(self.text[-size:]) for string in self._stop):
                return self.text[:-size]
        return self.text

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window)

    def _grow(self, decoded: str) -> None:
        """Let the text end with `decoded`, the text of the window, or before a string in it."""
        before = len(self._settled)
        self.text = self._settled + decoded[self._skip :]
        if self._stop:
            # A string may begin in text that is settled.
            begin = max(0, before - max(map(len, self._stop)) + 1)
            found = [self.text.find(string, begin) for string in self._stop]
            places = [place for place in found if place >= 0]
            if places:
                self.text, self.is_stopped = self.text[: min(places)], True
