"""What the toolkit asks of a tokenizer, and how one is built, saved and opened."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.config import ComponentConfig, Config, PathLike
from tencentpretrain.errors import DataError, named
from tencentpretrain.registry import Registry

Role = Literal["pad", "unk", "cls", "sep", "mask", "bos", "eos"]
ROLES: Final[tuple[Role, ...]] = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
FORMAT: Final = 1
DESCRIPTION: Final = "description.json"
"""File of a saved tokenizer that names its kind and its special tokens."""


class Specials(Config):
    """Names of the special tokens; where left out, the usual name of the kind is looked up."""

    pad: str | None = None
    """Token that fills rows up; its positions are never attended."""
    unk: str | None = None
    """Token for what the vocabulary cannot write."""
    cls: str | None = None
    """Token before a text, whose state stands for the whole of it."""
    sep: str | None = None
    """Token after each text of a pair."""
    mask: str | None = None
    """Token in the place of what a model has to guess."""
    bos: str | None = None
    """Token before a text that is to be generated."""
    eos: str | None = None
    """Token after a text that was generated."""


def part(files: Mapping[str, bytes], name: str) -> bytes:
    """One of the files of a saved tokenizer.

    Raises:
        DataError: if it is missing.
    """
    if name not in files:
        raise DataError(f"{name} is missing; save the tokenizer again")
    return files[name]


class Tokenizer(ABC):
    """Turns text to ids and back; special tokens written in a text stay ordinary text.

    Args:
        files: contents by name of what `save` writes; they make the fingerprint.
        pieces: text of each id; "" for an id that is not in use.
        continues: [V] bool; True where a piece continues a word.

    Raises:
        DataError: if a special token that the files name is not in the vocabulary.
    """

    class Config(ComponentConfig):
        vocab: PathLike
        """File of the vocabulary, or a directory that `build_vocab.py` has made."""
        specials: Specials = Specials()
        """Names of the special tokens, where they are not the usual ones of the kind."""

    usual: ClassVar[Mapping[Role, tuple[str, ...]]] = {}
    """Names that special tokens have in vocabularies of this kind, the likeliest first."""

    def __init__(
        self, files: Mapping[str, bytes], pieces: Sequence[str], continues: NDArray[np.bool_]
    ) -> None:
        self._files = dict(files)
        self._pieces = tuple(pieces)
        # Backwards, so that of two equal pieces the first one counts.
        numbers = range(len(pieces) - 1, -1, -1)
        self._ids = {pieces[number]: number for number in numbers if pieces[number]}
        description = json.loads(files[DESCRIPTION])
        self.kind: str = description["kind"]
        self.specials: dict[Role, str | None] = {r: description["specials"][r] for r in ROLES}
        self.vocab_size = len(pieces)
        self.pad = self._special("pad")
        self.unk = self._special("unk")
        self.cls = self._special("cls")
        self.sep = self._special("sep")
        self.mask = self._special("mask")
        self.bos = self._special("bos")
        self.eos = self._special("eos")
        found = (self.pad, self.unk, self.cls, self.sep, self.mask, self.bos, self.eos)
        self.special_ids = frozenset(number for number in found if number is not None)
        self.continues = continues.copy()
        self.continues[sorted(self.special_ids)] = False

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Self:
        """Build from the vocabulary that `config`, a `cls.Config`, names."""

    @classmethod
    @abstractmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """Build from what `save` wrote.

        Raises:
            DataError: if a file is missing or damaged.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; no special token is added."""

    @abstractmethod
    def encode_ends(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Ids of each text and, for each id, the number of the character behind its last one.

        A piece that stands for no character ends where the one before does.
        """

    @abstractmethod
    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word of one text; a word that vanishes becomes the unknown token."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; no special token is added."""
        return self.encode_batch([text])[0]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of all texts in a row, and the number of ids of each text."""
        encoded = self.encode_batch(texts)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter(chain.from_iterable(encoded), np.uint32, int(lengths.sum())), lengths

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`, without the special tokens unless they are asked for."""
        hidden = self.special_ids if skip_special else frozenset[int]()
        return self._decode([int(number) for number in ids if number not in hidden])

    def token(self, id: int) -> str:
        """The piece with this id.

        Raises:
            IndexError: if the vocabulary is smaller.
        """
        if not 0 <= id < self.vocab_size:
            raise IndexError(f"token id {id} is not in the vocabulary of {self.vocab_size} entries")
        return self._pieces[id]

    def id(self, token: str) -> int | None:
        """The id of a piece, None if the vocabulary lacks it."""
        return self._ids.get(token)

    def require(self, role: Role) -> int:
        """The id of a special token that the caller cannot do without.

        Raises:
            DataError: if the vocabulary has none.
        """
        found: int | None = getattr(self, role)
        if found is None:
            names = ", ".join(f"`{name}`" for name in self.usual.get(role, ())) or "none"
            raise DataError(
                f"the {self.kind} vocabulary has no `{role}` token (names tried: {names}); "
                f"preprocess with a vocabulary that has one, or name it with "
                f"`tokenizer.specials.{role}`"
            )
        return found

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the saved files: equal where the same text gives the same ids."""
        digest = hashlib.sha256()
        for name in sorted(self._files):
            digest.update(f"{name}\0{len(self._files[name])}\0".encode())
            digest.update(self._files[name])
        return digest.hexdigest()

    def save(self, directory: Path) -> None:
        """Write what `load_tokenizer` reads into `directory`, made where it does not exist."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            with open(directory / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    def _special(self, role: Role) -> int | None:
        name = self.specials[role]
        if name is not None and name not in self._ids:
            raise DataError(
                f"`{name}` is to be the `{role}` token, but is not in the {self.kind} vocabulary; "
                f"correct `tokenizer.specials.{role}` or add the entry"
            )
        return None if name is None else self._ids[name]

    def __reduce__(self) -> tuple[Any, ...]:
        # The libraries' objects do not travel between processes, the files do.
        return (type(self).from_files, (self._files,))

    @classmethod
    def describe(cls, config: Config, names: Iterable[str], **options: object) -> dict[str, bytes]:
        """The description file: special tokens as told, else the first usual name in `names`."""
        known = frozenset(names)
        told = getattr(config, "specials", Specials())
        specials = {
            role: getattr(told, role)
            or next((n for n in cls.usual.get(role, ()) if n in known), None)
            for role in ROLES
        }
        kind = getattr(config, "name", "") or next(
            n for n in TOKENIZERS if TOKENIZERS.get(n) is cls
        )
        content = {"format": FORMAT, "kind": kind, "specials": specials, **options}
        return {DESCRIPTION: (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()}


TOKENIZERS: Registry[Tokenizer] = Registry("tokenizer", "tencentpretrain.tokenizers")


def build_tokenizer(config: ComponentConfig) -> Tokenizer:
    """Build the tokenizer that `config.name` chooses.

    Raises:
        DataError: if its vocabulary cannot be used.
    """
    return TOKENIZERS.get(config.name).from_config(config)


def load_tokenizer(directory: Path) -> Tokenizer:
    """Open a tokenizer that `Tokenizer.save` wrote.

    Raises:
        DataError: if `directory` does not hold one, or one of a kind that is not known here.
    """
    path = directory / DESCRIPTION
    if not path.is_file():
        raise DataError(f"{directory} holds no saved tokenizer: there is no {DESCRIPTION}")
    files = {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}
    try:
        description = json.loads(files[DESCRIPTION])
        kind, complete = description["kind"], {*ROLES} <= {*description["specials"]}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error!r}); save the tokenizer again") from error
    if description.get("format") != FORMAT or not complete:
        raise DataError(
            f"{path} has format {description.get('format')!r}, but this version reads {FORMAT}"
        )
    try:
        cls = TOKENIZERS.get(kind)
    except (KeyError, PermissionError) as error:
        raise DataError(f"{path}: {error.args[0]}") from error
    with named(str(directory)):
        return cls.from_files(files)
