"""Byte-level byte-pair encoding, as published with GPT-2 (Radford et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tencentpretrain.config import PathLike
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import TOKENIZERS, Role, Tokenizer
from tencentpretrain.tokenizers.fast import FastTokenizer
from tencentpretrain.tokenizers.vocabulary import (
    JSON_VOCABULARY,
    MERGES,
    inside,
    read_json_vocabulary,
    read_text,
)


@TOKENIZERS.register("bpe")
class BpeTokenizer(FastTokenizer):
    """Merges the bytes of words into pieces; every text can be written and read back."""

    class Config(Tokenizer.Config):
        merges: PathLike | None = None
        """File of the merges that belongs to the vocabulary; by default `merges.txt` beside it."""
        add_prefix_space: bool = False
        """Whether a text begins with a space, so that its first word is like all others."""

    usual: ClassVar[Mapping[Role, tuple[str, ...]]] = {
        "pad": ("<pad>", "<|pad|>", "[PAD]"),
        "unk": ("<unk>", "[UNK]"),
        "cls": ("<s>", "[CLS]"),
        "sep": ("</s>", "[SEP]"),
        "mask": ("<mask>", "[MASK]"),
        "bos": ("<|endoftext|>", "<s>", "[CLS]"),
        "eos": ("<|endoftext|>", "</s>", "[SEP]"),
    }

    @classmethod
    def from_config(cls, config: BpeTokenizer.Config) -> Self:
        path = inside(config.vocab, JSON_VOCABULARY)
        vocabulary = read_json_vocabulary(path)
        absent = [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c not in vocabulary]
        if absent:
            raise DataError(
                f"the vocabulary {path} lacks {len(absent)} of the 256 byte symbols, such "
                f"as `{absent[0]}`, so that text would be lost; it is not one of byte-level BPE"
            )
        merges = _read_merges(config.merges or path.parent / MERGES, vocabulary)
        rust = pipeline(models.BPE(vocabulary, merges), config.add_prefix_space)
        return cls.of(config, rust, list(vocabulary))


def pipeline(model: models.BPE, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """What GPT-2 does before and after the merges."""
    rust = tokenizers.Tokenizer(model)
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    rust.decoder = decoders.ByteLevel()
    return rust


def _read_merges(path: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs in the order in which they are merged."""
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(read_text(path, "file of merges").split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise DataError(f"line {number} of {path} is not two pieces: {line[:80]!r}")
        unknown = next((p for p in (left, right, left + right) if p not in vocabulary), None)
        if unknown is not None:
            raise DataError(
                f"line {number} of {path} needs the piece `{unknown}`, which is not in "
                f"the vocabulary; the two files do not belong together"
            )
        merges.append((left, right))
    return merges
