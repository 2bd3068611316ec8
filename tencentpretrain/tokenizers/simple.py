"""Vocabularies of whole characters, and of words that the user has separated by spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import TOKENIZERS, Role, Tokenizer
from tencentpretrain.tokenizers.fast import FastTokenizer
from tencentpretrain.tokenizers.vocabulary import NEWLINE, VOCABULARY, inside, read_vocabulary
from tencentpretrain.tokenizers.wordpiece import BRACKETS


class WholeConfig(Tokenizer.Config):
    """What the vocabularies that cut nothing share."""

    lowercase: bool = False
    """Whether text is lower-cased; must fit the vocabulary."""


class WholeTokenizer(FastTokenizer):
    """Looks up units that a pre-tokenizer finds."""

    usual: ClassVar[Mapping[Role, tuple[str, ...]]] = BRACKETS

    @classmethod
    def _model(cls, config: WholeConfig, vocabulary: Mapping[str, int]) -> models.WordLevel:
        unknown = config.specials.unk or "[UNK]"
        if unknown not in vocabulary:
            raise DataError(
                f"the vocabulary {config.vocab} has no `{unknown}`, which stands for what it "
                f"cannot write; add it, or name the token with `tokenizer.specials.unk`"
            )
        return models.WordLevel(dict(vocabulary), unk_token=unknown)


@TOKENIZERS.register("character")
class CharacterTokenizer(WholeTokenizer):
    r"""Each character is a token; white space only if the vocabulary has a space.

    In the file of the vocabulary the entry `\n` (backslash, n) stands for a newline.
    """

    class Config(WholeConfig):
        pass

    @classmethod
    def from_config(cls, config: CharacterTokenizer.Config) -> Self:
        entries = read_vocabulary(inside(config.vocab, VOCABULARY))
        vocabulary = {"\n" if e == NEWLINE else e: number for e, number in entries.items()}
        model = cls._model(config, vocabulary)
        rust = character_pipeline(model, config.lowercase, " " in vocabulary)
        return cls.of(config, rust, list(vocabulary))


@TOKENIZERS.register("space")
class SpaceTokenizer(WholeTokenizer):
    """The words between white space are the tokens, as the user made them."""

    class Config(WholeConfig):
        pass

    @classmethod
    def from_config(cls, config: SpaceTokenizer.Config) -> Self:
        vocabulary = read_vocabulary(inside(config.vocab, VOCABULARY))
        rust = space_pipeline(cls._model(config, vocabulary), config.lowercase)
        return cls.of(config, rust, list(vocabulary))


def character_pipeline(
    model: models.WordLevel, lowercase: bool, has_spaces: bool
) -> tokenizers.Tokenizer:
    """Each character by itself, with or without white space."""
    rust = _pipeline(model, lowercase)
    single = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    rust.pre_tokenizer = (
        single
        if has_spaces
        else pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), single])
    )
    rust.decoder = decoders.Fuse()
    return rust


def space_pipeline(model: models.WordLevel, lowercase: bool) -> tokenizers.Tokenizer:
    """What stands between white space."""
    rust = _pipeline(model, lowercase)
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return rust


def _pipeline(model: models.WordLevel, lowercase: bool) -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(model)
    if lowercase:
        rust.normalizer = normalizers.Lowercase()
    return rust
