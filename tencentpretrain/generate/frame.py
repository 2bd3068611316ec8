"""What stands around a prompt, and begins and ends what is written: the same as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tencentpretrain.config import ComponentConfig, ConfigError
from tencentpretrain.data.objectives.bart import BartObjective
from tencentpretrain.data.objectives.prefix_lm import PrefixLmObjective
from tencentpretrain.data.objectives.translate import STARTS
from tencentpretrain.model import ModelConfig
from tencentpretrain.tokenizers.base import Tokenizer

Ids = tuple[int, ...]
Edge = Literal["auto", "none", "bos", "cls", "pad", "eos", "sep"]
ALIKE: Final = {"bos": "cls", "eos": "sep"}
"""What begins and ends a text in vocabularies like BERT's, which have no other token for it."""


@dataclass(frozen=True)
class Frame:
    """Ids around a prompt and around what is written.

    Args:
        before: Before a prompt.
        behind: After it.
        alone: In the place of a prompt that is empty, `before` and `behind` included.
        start: What a decoder begins with.
        ends: Each ends what is written.
        stop: Strings that do so, too.
        is_continued: Whether the text goes on with that of the prompt, so that the two decide on a
            space between.
        has_prefix: Whether a model with the mask `prefix` sees the prompt as a whole.
        segment: Segment of what is written.
    """

    before: Ids = ()
    behind: Ids = ()
    alone: Ids = ()
    start: Ids = ()
    ends: Ids = ()
    stop: tuple[str, ...] = ()
    is_continued: bool = True
    has_prefix: bool = False
    segment: int = 0

    def around(self, ids: Sequence[int]) -> list[int]:
        """The row of a prompt."""
        return [*self.before, *ids, *self.behind] or list(self.alone)


def find_frame(
    model: ModelConfig,
    tokenizer: Tokenizer,
    target_tokenizer: Tokenizer | None = None,
    begin: Edge = "auto",
    start: Edge = "auto",
) -> Frame:
    """The frame that `model` was trained with.

    Args:
        model: With the objective of its training, as far as it is known.
        tokenizer: Of prompts.
        target_tokenizer: Of what is written, where it is another one.
        begin: Special token before a prompt; "auto" is as in training.
        start: Special token that a decoder begins with; "auto" is as in training.

    Raises:
        ConfigError: if the vocabulary has no such token, or there is no decoder to begin.
    """
    objective = model.objective
    before = _before(objective, tokenizer, begin)
    if model.decoder is not None:
        return _pair_frame(objective, before, tokenizer, target_tokenizer or tokenizer, start)
    if start != "auto":
        raise ConfigError.at("start", "is for models with a decoder; leave it out")
    end = _end(tokenizer)
    if isinstance(objective, PrefixLmObjective.Config):
        return Frame(
            before,
            behind=end if tokenizer.sep is None else (tokenizer.sep,),
            ends=end,
            is_continued=False,
            has_prefix=not objective.supervise_source,
            segment=1,
        )
    alone = end or _ids(tokenizer, "bos") or _ids(tokenizer, "cls")
    return Frame(before, alone=alone, ends=end, has_prefix=objective is None)


def _pair_frame(
    objective: ComponentConfig | None,
    before: Ids,
    tokenizer: Tokenizer,
    target_tokenizer: Tokenizer,
    start: Edge,
) -> Frame:
    """That of an encoder-decoder."""
    told: str = getattr(objective, "start", "auto") if start == "auto" else start
    if told == "auto":
        found = [ids for role in STARTS if (ids := _ids(target_tokenizer, role))]
        begun = found[0] if found else ()
    else:
        begun = _required(target_tokenizer, told, "start")
    if isinstance(objective, BartObjective.Config):
        # Its targets begin with [bos], which a model need not be asked for.
        begun += _required(target_tokenizer, "bos", "start")
    if not begun:
        message = "is required: the vocabulary has no token that a decoder usually begins with"
        raise ConfigError.at("start", message)
    return Frame(
        before,
        behind=_end(tokenizer),
        alone=_end(tokenizer),
        start=begun,
        ends=_end(target_tokenizer),
        is_continued=False,
    )


def caption_edges(tokenizer: Tokenizer) -> tuple[Ids, Ids]:
    """What stands before and behind a caption in training; BERT's tokens, where there are such."""
    if tokenizer.cls is not None:
        return (tokenizer.cls,), _ids(tokenizer, "sep")
    return _ids(tokenizer, "bos"), _end(tokenizer)


def _before(objective: ComponentConfig | None, tokenizer: Tokenizer, begin: Edge) -> Ids:
    role: str = begin
    if begin == "auto":
        role = getattr(objective, "source_start", "none")
        if getattr(objective, "bos", False) or isinstance(objective, BartObjective.Config):
            role = "bos"
    return _required(tokenizer, role, "begin")


def _end(tokenizer: Tokenizer) -> Ids:
    """[eos], or [sep] in vocabularies like BERT's."""
    return _ids(tokenizer, "eos") or _ids(tokenizer, "sep")


def _ids(tokenizer: Tokenizer, role: str) -> Ids:
    number: int | None = getattr(tokenizer, role)
    return () if number is None else (number,)


def _required(tokenizer: Tokenizer, role: str, key: str) -> Ids:
    """The special token that `key` names; vocabularies like BERT's have others for two roles."""
    if role in ("none", "auto"):
        return ()
    found = _ids(tokenizer, role) or _ids(tokenizer, ALIKE.get(role, role))
    if not found:
        message = f"the vocabulary has no special token `{role}`; choose another one"
        raise ConfigError.at(key, message)
    return found
