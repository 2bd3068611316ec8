"""Sounds and what is said in them, for encoder-decoders: S2T and Whisper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tencentpretrain.config import Config, nearest
from tencentpretrain.data.media.filter_banks import FilterBank, FilterBankConfig
from tencentpretrain.data.media.hearing import FRAMES, Hearing, VariationConfig, frames_stream
from tencentpretrain.data.objectives.base import OBJECTIVES, Example
from tencentpretrain.data.objectives.records import Records, keep
from tencentpretrain.data.objectives.seq2seq import Seq2SeqConfig, Seq2SeqObjective
from tencentpretrain.data.objectives.translate import decoder_tokens
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import Integers
from tencentpretrain.data.shard_format import DURATION
from tencentpretrain.errors import DataError, named
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.types import Stream


class Sounds(Records, Protocol):
    """What is read of stored sounds; `ShardSet` is one."""

    def media(self, document: int) -> bytes: ...
    def where(self, document: int) -> str: ...
    def values(self, name: str) -> NDArray[Any]: ...


class WritingConfig(Config):
    """Keys of what begins a text that a decoder writes."""

    start: Literal["auto", "bos", "cls", "pad", "eos", "sep"] = "auto"
    """Special token that the decoder starts from, such as eos (S2T); auto takes the first of bos,
    cls and pad that the vocabulary has."""
    prompt: list[str] = []
    """Tokens that the decoder starts from instead, such as those for a language (Whisper)."""


@OBJECTIVES.register("s2t")
class S2tObjective(Seq2SeqObjective):
    """The encoder reads frames, the decoder "[start] text" with labels "text [eos]"."""

    class Config(WritingConfig, VariationConfig, Seq2SeqConfig):
        length: Annotated[int, Field(ge=8)] = 3000
        """Greatest length of a sound, in frames of 10 ms."""
        bank: FilterBankConfig = FilterBankConfig()
        """How sounds become frames."""
        overlong: Literal["drop", "cut"] = "drop"
        """What to do with a sound that does not fit: leave it out, or cut its end."""

    config: Config
    shards: Sounds
    tokenizer: Tokenizer
    needs = ()

    def _prepare(self) -> None:
        if DURATION not in self.shards.columns:
            raise DataError(
                f"objective `{self.name}` needs sounds with their texts; preprocess with "
                "corpus.format=audio_text or choose another objective"
            )
        config = self.config
        self._hearing = Hearing(FilterBank(config.bank), config)
        self._prompt, self._end = written_frame(self.name, self.tokenizer, config)
        # [eos] is only ever a label: there is room for as many tokens as behind the prompt.
        room = config.target_length - len(self._prompt) + 1
        fits = self.shards.lengths()[self.documents] < room
        if config.overlong == "drop":
            limit = min(config.length, self._hearing.bank.frame_limit or config.length)
            fits &= self._hearing.frames(self.sizes()) <= limit
        limits = f"length={config.length} and target_length={config.target_length}"
        keep(self, fits, f"sounds, which do not fit {limits}")

    def __len__(self) -> int:
        return len(self.documents)

    def sizes(self) -> Integers:
        """Lengths [N] in milliseconds."""
        return self.shards.values(DURATION)[self.documents].astype(np.int64)

    def make(self, epoch: int, index: int) -> Example:
        document = int(self.documents[index])
        random = generator(self.seed, epoch, index) if self.is_training else None
        data = self.shards.media(document)
        with named(self.shards.where(document)):
            frames = self._hearing(data, random, self.config.length)
        return {FRAMES: frames, **written(self._prompt, self.shards.read(document), self._end)}

    def source(self, examples: Sequence[Example]) -> tuple[Stream, int]:
        rows = [example[FRAMES] for example in examples]
        return frames_stream(rows, self.config.pad_to, self.config.length)


def written(prompt: Sequence[int], text: NDArray[Any], end: int) -> Example:
    """What the decoder reads, "[prompt] text", and learns: "text [end]"."""
    first = len(prompt) - 1
    return {
        "target_ids": np.concatenate([prompt, text], dtype=np.int64),
        "labels": np.append(text, end).astype(np.int64),
        "index": np.arange(first, first + len(text) + 1),
    }


def written_frame(
    name: str, tokenizer: Tokenizer, config: WritingConfig
) -> tuple[tuple[int, ...], int]:
    """Ids that the decoder starts from, and the one that ends a text.

    Raises:
        DataError: if one is not in the vocabulary.
    """
    ids = []
    for token in config.prompt:
        number = tokenizer.id(token)
        if number is None:
            pieces = (tokenizer.token(piece) for piece in range(tokenizer.vocab_size))
            raise DataError(
                f"`{token}` of the prompt of `{name}` is not in the vocabulary; "
                f"{nearest(token, pieces)}"
            )
        ids.append(number)
    start, end = decoder_tokens(name, tokenizer, "eos" if ids else config.start)
    return tuple(ids) or (start,), end
