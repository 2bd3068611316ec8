"""Pairs of texts for encoder-decoders (Vaswani et al., 2017): translation, summaries, answers."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Vocabulary, require_texts
from tencentpretrain.data.objectives.records import (
    Records,
    end_token,
    keep,
    require_column,
    tell_cut,
)
from tencentpretrain.data.objectives.seq2seq import Seq2SeqConfig, Seq2SeqObjective
from tencentpretrain.data.packing import Integers
from tencentpretrain.data.shard_format import TARGET
from tencentpretrain.errors import DataError

STARTS: Final = ("bos", "cls", "pad")
"""Special tokens that usually start a decoder, in the order in which they are looked for."""


@OBJECTIVES.register("translate")
class TranslateObjective(Seq2SeqObjective):
    """The encoder reads "source [eos]", the decoder "[start] target" with labels "target [eos]".

    Both texts have their own vocabularies where they were preprocessed so.
    """

    class Config(Seq2SeqConfig):
        start: Literal["auto", "bos", "cls", "pad", "eos", "sep"] = "auto"
        """Special token that the decoder starts from, such as pad (T5) or eos (BART); auto takes
        the first of bos, cls and pad that the vocabulary of the targets has."""
        source_start: Literal["none", "bos", "cls"] = "none"
        """Special token before the source, such as bos (BART)."""
        overlong: Literal["cut", "drop"] = "cut"
        """What to do with a pair that does not fit: cut the ends of its texts (a cut target has no
        [eos] to learn), or drop it."""

    config: Config
    shards: Records
    needs = ()
    reads_targets = True

    def _prepare(self) -> None:
        require_column(self, TARGET)
        config = self.config
        before = () if config.source_start == "none" else (self.special(config.source_start),)
        self._before = np.array(before, np.int64)
        self._end = end_token(self)
        tokenizer = self.shards.target_tokenizer()
        self._start, self._target_end = decoder_tokens(self.name, tokenizer, config.start)
        self._room = config.length - len(before) - 1
        # [eos] is only ever a label: the decoder reads [start] in its stead.
        self._target_room = config.target_length - 1
        fits = self.shards.lengths()[self.documents] <= self._room
        fits &= self.shards.lengths(TARGET)[self.documents] <= self._target_room
        lengths = f"length={config.length} and target_length={config.target_length}"
        if config.overlong == "drop":
            keep(self, fits, f"pairs, which do not fit {lengths}")
        else:
            tell_cut(self, int((~fits).sum()), f"pairs to {lengths}")

    def __len__(self) -> int:
        return len(self.documents)

    def sizes(self) -> Integers:
        return self.shards.lengths()[self.documents]

    def make(self, epoch: int, index: int) -> Example:
        document = int(self.documents[index])
        source = self.shards.read(document, 0, self._room)
        # One token more than is read: the label of the last position.
        target = self.shards.column(TARGET, document, 0, self._target_room + 1)
        labels = np.append(target.astype(np.int64), self._target_end)[: self._target_room + 1]
        return {
            "ids": np.concatenate([self._before, source, [self._end]], dtype=np.int64),
            "target_ids": np.concatenate([[self._start], labels[:-1]]),
            "labels": labels,
            "index": np.arange(len(labels)),
        }

    @property
    def pads(self) -> dict[str, int]:
        return {
            "src": self.tokenizer.pad or 0,
            "tgt": self.shards.target_tokenizer().pad or 0,
        }


def decoder_tokens(name: str, tokenizer: Vocabulary, start: str) -> tuple[int, int]:
    """What the decoder starts from, and what ends a target.

    Args:
        name: Of the objective.
        tokenizer: Of the targets.
        start: Special token that the decoder starts from, or "auto".

    Raises:
        DataError: if the tokenizer has no such tokens, or the data no texts.
    """
    require_texts(name, tokenizer)
    wanted = STARTS if start == "auto" else (start,)
    starts = [number for role in wanted if (number := getattr(tokenizer, role)) is not None]
    end = tokenizer.sep if tokenizer.eos is None else tokenizer.eos
    if not starts or end is None:
        roles = "eos` or `sep" if end is None else "` or `".join(wanted)
        raise DataError(
            f"objective `{name}` needs the special token `{roles}`, but the tokenizer of "
            "the targets has none; preprocess with a vocabulary that has it"
        )
    return starts[0], end
