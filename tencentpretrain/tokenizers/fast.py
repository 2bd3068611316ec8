"""Tokenizers made of parts of the `tokenizers` library, kept as one `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models

from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import TOKENIZERS, Role, Tokenizer, part
from tencentpretrain.tokenizers.vocabulary import inside, read_text

SAVED: Final = "tokenizer.json"
BYTE_SPACES: Final = ("Ġ", "Ċ", "ĉ", "č")
"""How byte-level vocabularies write space, newline, tab and carriage return."""


class FastTokenizer(Tokenizer):
    """A pipeline of the `tokenizers` library; the kinds differ in how they build it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._rust = _open(part(files, SAVED))
        vocabulary = self._rust.get_vocab(with_added_tokens=True)
        pieces = [""] * (max(vocabulary.values()) + 1)
        for piece, number in vocabulary.items():
            pieces[number] = piece
        self._is_byte_level, continues = _continuations(self._rust.model, pieces)
        super().__init__(files, pieces, continues)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        return cls(files)

    @classmethod
    def of(cls, config: Any, rust: tokenizers.Tokenizer, names: Sequence[str]) -> Self:
        """A tokenizer of the kind `config` around a pipeline with the vocabulary `names`."""
        return cls({SAVED: rust.to_str().encode(), **cls.describe(config, names)})

    def encode(self, text: str) -> list[int]:
        return list(self._rust.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        batch = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def encode_ends(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        batch = self._rust.encode_batch(list(texts), add_special_tokens=False)
        return [(e.ids, [end for _, end in e.offsets]) for e in batch]

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        if self._is_byte_level:
            # Such vocabularies write the space before a word as part of it.
            words = [
                f" {word}" if number or not word else word for number, word in enumerate(words)
            ]
        return [ids or [self.require("unk")] for ids in self.encode_batch(words)]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._rust.decode(ids, skip_special_tokens=False)
        return text


def _open(content: bytes) -> tokenizers.Tokenizer:
    try:
        rust = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"the content is not that of a {SAVED} ({error})") from error
    # Published files may cut and fill up texts; how long a row is, is not the tokenizer's matter.
    rust.no_truncation()
    rust.no_padding()
    # A text that spells a special token does not become it: data must not forge markers.
    rust.encode_special_tokens = True
    return rust


def _continuations(model: models.Model, pieces: Sequence[str]) -> tuple[bool, NDArray[np.bool_]]:
    """Whether words are marked with a byte-level space, and which pieces continue a word [V]."""
    prefix = getattr(model, "continuing_subword_prefix", None)
    if prefix:
        inside = [piece.startswith(prefix) for piece in pieces]
        return False, np.array(inside, bool)
    bytewise = sum(piece.startswith("Ġ") for piece in pieces)
    marked = sum(piece.startswith("▁") for piece in pieces)
    if not bytewise and not marked:
        return False, np.zeros(len(pieces), bool)
    starts = BYTE_SPACES if bytewise > marked else ("▁",)
    inside = [bool(piece) and not piece.startswith(starts) for piece in pieces]
    return bytewise > marked, np.array(inside, bool)


@TOKENIZERS.register("json")
class JsonTokenizer(FastTokenizer):
    """Any `tokenizer.json`, used as it is, except that it neither cuts nor fills up texts."""

    class Config(Tokenizer.Config):
        pass

    usual: ClassVar[Mapping[Role, tuple[str, ...]]] = {
        "pad": ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>"),
        "unk": ("[UNK]", "<unk>"),
        "cls": ("[CLS]", "<s>"),
        "sep": ("[SEP]", "</s>"),
        "mask": ("[MASK]", "<mask>"),
        "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>", "[CLS]"),
        "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"),
    }

    @classmethod
    def from_config(cls, config: JsonTokenizer.Config) -> Self:
        path = inside(config.vocab, SAVED)
        content = read_text(path, "tokenizer file").encode()
        try:
            names = list(_open(content).get_vocab(with_added_tokens=True))
        except DataError as error:
            raise DataError(f"{path} cannot be used: {error}") from error
        if not names:
            raise DataError(f"{path} has an empty vocabulary")
        return cls({SAVED: content, **cls.describe(config, names)})
