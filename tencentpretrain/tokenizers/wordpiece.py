"""WordPiece, as published with BERT (Devlin et al., 2018, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tencentpretrain.config import PositiveInt
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import TOKENIZERS, Role, Tokenizer
from tencentpretrain.tokenizers.fast import FastTokenizer
from tencentpretrain.tokenizers.vocabulary import VOCABULARY, inside, read_vocabulary

BRACKETS: Mapping[Role, tuple[str, ...]] = {
    "pad": ("[PAD]",),
    "unk": ("[UNK]",),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]",),
    "bos": ("[CLS]",),
    "eos": ("[SEP]",),
}
"""Special tokens as BERT writes them; they also begin and end what is generated."""


@TOKENIZERS.register("wordpiece")
class WordPieceTokenizer(FastTokenizer):
    """Splits at spaces, punctuation and Chinese characters, then takes longest known pieces."""

    class Config(Tokenizer.Config):
        lowercase: bool = True
        """Whether text is lower-cased; must fit the vocabulary."""
        strip_accents: bool | None = None
        """Whether accents are taken off letters; by default as `lowercase`."""
        split_chinese: bool = True
        """Whether each Chinese character is a word of its own."""
        max_word_chars: PositiveInt = 100
        """A longer word, in characters, becomes the unknown token as a whole."""

    usual: ClassVar[Mapping[Role, tuple[str, ...]]] = BRACKETS

    @classmethod
    def from_config(cls, config: WordPieceTokenizer.Config) -> Self:
        vocabulary = read_vocabulary(inside(config.vocab, VOCABULARY))
        unknown = config.specials.unk or "[UNK]"
        if unknown not in vocabulary:
            raise DataError(
                f"the vocabulary {config.vocab} has no `{unknown}`, which WordPiece needs for what "
                f"it cannot write; add it, or name the token with `tokenizer.specials.unk`"
            )
        model = models.WordPiece(
            vocabulary, unk_token=unknown, max_input_chars_per_word=config.max_word_chars
        )
        rust = pipeline(model, config.lowercase, config.strip_accents, config.split_chinese)
        return cls.of(config, rust, list(vocabulary))


def pipeline(
    model: models.WordPiece,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    split_chinese: bool = True,
) -> tokenizers.Tokenizer:
    """What BERT does before and after the pieces are found."""
    rust = tokenizers.Tokenizer(model)
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=split_chinese,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    return rust
