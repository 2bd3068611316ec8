"""How the vocabulary of each kind is learned from a corpus."""

from __future__ import annotations

import io
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import sentencepiece
import tokenizers
from pydantic import Field
from tokenizers import models, pre_tokenizers, trainers

from tencentpretrain.config import ComponentConfig, PositiveInt
from tencentpretrain.errors import DataError
from tencentpretrain.registry import Registry
from tencentpretrain.tokenizers import bpe, simple, wordpiece
from tencentpretrain.tokenizers.vocabulary import (
    JSON_VOCABULARY,
    MERGES,
    MODEL,
    NEWLINE,
    VOCABULARY,
)

BERT_SPECIALS: Final = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BPE_SPECIALS: Final = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
SENTENCEPIECE_THREADS: Final = 4
"""Fixed, because sums over threads decide which pieces stay."""


class Trainer(ABC):
    """Learns a vocabulary of one kind.

    Args:
        config: a `Config` of the class.
        read: starts reading the corpus: sentences, document by document.
    """

    class Config(ComponentConfig):
        pass

    def __init__(self, config: Any, read: Callable[[], Iterator[list[str]]]) -> None:
        self.config = config
        self.read = read

    @abstractmethod
    def train(self, vocab_size: int, min_frequency: int) -> dict[str, bytes]:
        """Files of the vocabulary by name.

        Raises:
            DataError: if the corpus does not allow a vocabulary of this size.
        """


TRAINERS: Registry[Trainer] = Registry("vocabulary", __name__)


@TRAINERS.register("wordpiece")
class WordPieceVocabulary(Trainer):
    """Pieces of words for BERT."""

    class Config(ComponentConfig):
        lowercase: bool = True
        """Whether text is lower-cased."""
        strip_accents: bool | None = None
        """Whether accents are taken off letters; by default as `lowercase`."""
        split_chinese: bool = True
        """Whether each Chinese character is a word of its own."""
        specials: list[str] = BERT_SPECIALS
        """Special tokens, which are the first entries."""
        character_share: Annotated[float, Field(gt=0, le=1)] = 0.75
        """Largest part of the entries that may be single characters; rare ones are left out."""

    def train(self, vocab_size: int, min_frequency: int) -> dict[str, bytes]:
        config: WordPieceVocabulary.Config = self.config
        model = models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")
        rust = wordpiece.pipeline(
            model, config.lowercase, config.strip_accents, config.split_chinese
        )
        _check_size(vocab_size, config.specials)
        room = int((vocab_size - len(config.specials)) * config.character_share)
        single = _characters(rust, self.read(), room)
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            # The library numbers characters as it meets them in a hash table, and lets numbers
            # decide between pairs that are equally frequent: so they are numbered before.
            special_tokens=[*config.specials, *single],
            initial_alphabet=[entry for entry in single if len(entry) == 1],
            limit_alphabet=sum(len(entry) == 1 for entry in single),
            show_progress=False,
        )
        return _one_a_line(_learn(rust, trainer, self.read()))


def _characters(rust: tokenizers.Tokenizer, texts: Iterator[list[str]], room: int) -> Sequence[str]:
    """The most frequent characters, and `##` before those that occur inside words, in order."""
    words: Counter[str] = Counter()
    for document in texts:
        for text in document:
            normal = rust.normalizer.normalize_str(text)
            words.update(word for word, _ in rust.pre_tokenizer.pre_tokenize_str(normal))
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, count in words.items():
        inside.update(word[1:])
        for character in word:
            counts[character] += count
    kept: list[str] = []
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        room -= 2 if character in inside else 1
        if room < 0:
            break
        kept.append(character)
    kept.sort()
    return kept + [f"##{character}" for character in kept if character in inside]


@TRAINERS.register("bpe")
class BpeVocabulary(Trainer):
    """Merged bytes, as for GPT-2 and RoBERTa."""

    class Config(ComponentConfig):
        add_prefix_space: bool = False
        """Whether a text begins with a space, so that its first word is like all others."""
        specials: list[str] = BPE_SPECIALS
        """Special tokens, which are the first entries."""

    def train(self, vocab_size: int, min_frequency: int) -> dict[str, bytes]:
        config: BpeVocabulary.Config = self.config
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        _check_size(vocab_size, [*alphabet, *config.specials])
        rust = bpe.pipeline(models.BPE(), config.add_prefix_space)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=config.specials,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        _learn(rust, trainer, self.read())
        with tempfile.TemporaryDirectory() as folder:
            rust.model.save(folder)
            return {name: (Path(folder) / name).read_bytes() for name in (JSON_VOCABULARY, MERGES)}


class WholeVocabularyConfig(ComponentConfig):
    """What the vocabularies that cut nothing share."""

    lowercase: bool = False
    """Whether text is lower-cased."""
    specials: list[str] = BERT_SPECIALS
    """Special tokens, which are the first entries."""


@TRAINERS.register("character")
class CharacterVocabulary(Trainer):
    """The most frequent characters."""

    class Config(WholeVocabularyConfig):
        keep_spaces: bool = False
        """Whether white space is written; if so, newlines too where `corpus.keep_newlines` keeps
        them."""

    def train(self, vocab_size: int, min_frequency: int) -> dict[str, bytes]:
        config: CharacterVocabulary.Config = self.config
        rust = simple.character_pipeline(models.WordLevel(), config.lowercase, config.keep_spaces)
        found = _learn(rust, _whole(config, vocab_size, min_frequency), self.read())
        # A file with one entry a line cannot hold the characters that end lines.
        kept = [NEWLINE if entry == "\n" else entry for entry in found if entry != "\r"]
        return _one_a_line(kept)


@TRAINERS.register("space")
class SpaceVocabulary(Trainer):
    """The most frequent words between white space."""

    class Config(WholeVocabularyConfig):
        pass

    def train(self, vocab_size: int, min_frequency: int) -> dict[str, bytes]:
        rust = simple.space_pipeline(models.WordLevel(), self.config.lowercase)
        return _one_a_line(
            _learn(rust, _whole(self.config, vocab_size, min_frequency), self.read())
        )


@TRAINERS.register("sentencepiece")
class SentencePieceVocabulary(Trainer):
    """Pieces of raw text."""

    class Config(ComponentConfig):
        model_type: Literal["unigram", "bpe"] = "unigram"
        """How the pieces are found."""
        lowercase: bool = False
        """Whether text is case-folded."""
        character_coverage: Annotated[float, Field(gt=0, le=1)] = 0.9995
        """Share of the characters of the corpus that have an entry."""
        specials: list[str] = ["<pad>", "<mask>"]
        """Special tokens behind `<unk>`, `<s>` and `</s>`, which are the first entries."""
        max_sentences: PositiveInt = 5_000_000
        """Only so many sentences, the first ones, are learned from, as they are kept in memory."""

    def train(self, vocab_size: int, min_frequency: int) -> dict[str, bytes]:
        config: SentencePieceVocabulary.Config = self.config
        written = io.BytesIO()
        sentences = (sentence for document in self.read() for sentence in document)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sentences,
                model_writer=written,
                vocab_size=vocab_size,
                model_type=config.model_type,
                normalization_rule_name="nmt_nfkc_cf" if config.lowercase else "nmt_nfkc",
                character_coverage=config.character_coverage,
                control_symbols=config.specials,
                input_sentence_size=config.max_sentences,
                shuffle_input_sentence=False,
                max_sentence_length=1 << 20,
                num_threads=SENTENCEPIECE_THREADS,
                hard_vocab_limit=False,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).rpartition("] ")[2] or str(error)
            raise DataError(f"SentencePiece cannot learn {vocab_size} entries: {reason}") from error
        return {MODEL: written.getvalue()}


def _check_size(vocab_size: int, given: Sequence[str]) -> None:
    """Whether there is room for entries beside those that are always there."""
    if vocab_size <= len(given):
        raise DataError(
            f"vocab_size must be above {len(given)}, the number of entries that are always there "
            f"(special tokens, and bytes for bpe), but is {vocab_size}"
        )


def _learn(
    rust: tokenizers.Tokenizer, trainer: trainers.Trainer, texts: Iterator[list[str]]
) -> Sequence[str]:
    """Train, and return the entries in the order of their ids."""
    rust.train_from_iterator(texts, trainer)
    vocabulary: Mapping[str, int] = rust.get_vocab(with_added_tokens=False)
    return sorted(vocabulary, key=lambda entry: vocabulary[entry])


def _whole(
    config: WholeVocabularyConfig, vocab_size: int, min_frequency: int
) -> trainers.WordLevelTrainer:
    _check_size(vocab_size, config.specials)
    return trainers.WordLevelTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=config.specials,
        show_progress=False,
    )


def _one_a_line(entries: Sequence[str]) -> dict[str, bytes]:
    return {VOCABULARY: "".join(f"{entry}\n" for entry in entries).encode()}
