"""Conversations as rows of tokens: what stands around each message, and what is to be learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, NamedTuple

from tencentpretrain.data.records import ASSISTANT
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import Tokenizer

MARKERS: Final = ("<|im_start|>", "<|im_end|>")

Ids = tuple[int, ...]


class Turn(NamedTuple):
    """One message: fixed ids, a text that is to be tokenised, fixed ids.

    Args:
        before: what introduces the message.
        text: the message.
        end: what ends it; an assistant has to write it.
        behind: what follows the end, and is learned from nobody.
        is_learned: whether `text` and `end` are supervised.
    """

    before: Ids
    text: str
    end: Ids
    behind: Ids
    is_learned: bool


class Template(ABC):
    """Writes conversations for one tokenizer."""

    warning: str | None = None
    """What a user should know about this template and this tokenizer."""

    @abstractmethod
    def turns(self, roles: Sequence[str], texts: Sequence[str]) -> list[Turn]:
        """The messages `texts` of `roles`, each as it is written."""


class ChatMl(Template):
    r"""<|im_start|>role\ncontent<|im_end|>\n for each message (OpenAI's ChatML).

    Markers are the single tokens of the vocabulary, or ordinary text where it has none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        absent = [name for name in MARKERS if tokenizer.id(name) is None]
        if absent:
            self.warning = (
                f"the vocabulary has no token {' and no '.join(absent)}, so that corpus.template="
                "chatml writes them as text of several tokens; add them to the vocabulary, or use "
                "corpus.template=plain"
            )
        self._start, self._end = (_marker(tokenizer, name) for name in MARKERS)
        self._newline = tuple(tokenizer.encode("\n"))
        # What is learned is tokenised by itself, as it will be when the model writes it.
        self._answer = self._start + tuple(tokenizer.encode(f"{ASSISTANT}\n"))

    def turns(self, roles: Sequence[str], texts: Sequence[str]) -> list[Turn]:
        return [
            Turn(self._answer, text, self._end, self._newline, True)
            if role == ASSISTANT
            else Turn(self._start, f"{role}\n{text}", self._end, self._newline, False)
            for role, text in zip(roles, texts, strict=True)
        ]


class Plain(Template):
    """[bos] prompt answer [eos], and so on with further prompts and answers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        end = tokenizer.sep if tokenizer.eos is None else tokenizer.eos
        if end is None:
            raise DataError(
                "corpus.template=plain needs the special token `eos` (or `sep`), which ends an "
                "answer, but the vocabulary has none; name it with tokenizer.specials.eos"
            )
        self._start: Ids = () if tokenizer.bos is None else (tokenizer.bos,)
        self._end: Ids = (end,)

    def turns(self, roles: Sequence[str], texts: Sequence[str]) -> list[Turn]:
        return [
            Turn(
                () if number else self._start,
                text,
                self._end if role == ASSISTANT else (),
                (),
                role == ASSISTANT,
            )
            for number, (role, text) in enumerate(zip(roles, texts, strict=True))
        ]


TEMPLATES: Final[dict[str, type[ChatMl] | type[Plain]]] = {"chatml": ChatMl, "plain": Plain}


def _marker(tokenizer: Tokenizer, name: str) -> Ids:
    number = tokenizer.id(name)
    return tuple(tokenizer.encode(name)) if number is None else (number,)
