"""Conversations as prompts: written as in training, up to where the assistant has to answer."""

from __future__ import annotations

from collections.abc import Sequence

from tencentpretrain.data.chat import Template
from tencentpretrain.data.records import ASSISTANT
from tencentpretrain.generate.frame import Frame
from tencentpretrain.tokenizers.base import Tokenizer


def chat_frame(template: Template, tokenizer: Tokenizer) -> Frame:
    """What ends an answer under `template`; what begins a prompt is in the prompt itself."""
    (answer,) = template.turns([ASSISTANT], [""])
    ends = () if tokenizer.eos is None else (tokenizer.eos,)
    if len(answer.end) == 1:
        return Frame(ends=tuple({*answer.end, *ends}), is_continued=False)
    # The end is written as text where the vocabulary has no token for it.
    stop = tokenizer.decode(answer.end, skip_special=False)
    return Frame(ends=ends, stop=(stop,), is_continued=False)


def chat_prompt(
    template: Template, tokenizer: Tokenizer, roles: Sequence[str], texts: Sequence[str]
) -> list[int]:
    """Ids of the messages `texts` of `roles`, and what introduces the assistant's next one."""
    *turns, answer = template.turns([*roles, ASSISTANT], [*texts, ""])
    encoded = tokenizer.encode_batch([turn.text for turn in turns])
    ids = []
    for turn, text in zip(turns, encoded, strict=True):
        ids += [*turn.before, *text, *turn.end, *turn.behind]
    return [*ids, *answer.before]
