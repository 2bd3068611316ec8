"""SentencePiece models (Kudo and Richardson, 2018, arXiv:1808.06226)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Final, Literal, Self

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from tencentpretrain.config import PathLike
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import DESCRIPTION, TOKENIZERS, Role, Tokenizer, part
from tencentpretrain.tokenizers.vocabulary import (
    JSON_VOCABULARY,
    MODEL,
    inside,
    read_bytes,
    read_json_vocabulary,
)

FIRST_OF_XLMR: Final = ("<s>", "<pad>", "</s>", "<unk>")
XLMR_IDS: Final = np.array([3, 0, 2], np.int32)
"""Ids there of the first pieces of a model: `<unk>`, `<s>`, `</s>`."""


@TOKENIZERS.register("sentencepiece")
class SentencePieceTokenizer(Tokenizer):
    """Pieces of raw text, spaces included; what a model defines as user symbols stays whole."""

    class Config(Tokenizer.Config):
        ids: Literal["model", "xlmr"] = "model"
        """Numbering: that of the model file, or that of XLM-R, which has `<s> <pad> </s> <unk>`
        first and `<mask>` last."""
        numbers: PathLike | None = None
        """File of the ids of pieces, a JSON object, where the model file has others (S2T)."""
        lowercase: bool = False
        """Whether texts are made lower case before anything else."""

    usual: ClassVar[Mapping[Role, tuple[str, ...]]] = {
        "pad": ("<pad>", "[PAD]"),
        "unk": ("<unk>", "[UNK]"),
        "cls": ("[CLS]", "<s>"),
        "sep": ("[SEP]", "</s>"),
        "mask": ("[MASK]", "<mask>"),
        "bos": ("<s>", "[CLS]"),
        "eos": ("</s>", "[SEP]"),
    }

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._model, own = _open(part(files, MODEL))
        description = json.loads(files[DESCRIPTION])
        is_xlmr = description.get("ids") == "xlmr"
        self._is_lower = bool(description.get("lowercase"))
        pieces = _pieces(own, is_xlmr)
        # [pieces of the model] -> our id, and back; the unknown piece for our own additions
        self._to_ours = np.arange(len(own), dtype=np.int32)
        if is_xlmr:
            self._to_ours = np.concatenate([XLMR_IDS, self._to_ours[len(XLMR_IDS) :] + 1])
        if JSON_VOCABULARY in files:
            numbers = json.loads(files[JSON_VOCABULARY])
            pieces = _numbered(numbers)
            unknown = numbers[description["specials"]["unk"]]
            self._to_ours = np.array([numbers.get(piece, unknown) for piece in own], np.int32)
        self._to_model = np.full(len(pieces), self._model.unk_id(), np.int32)
        # Backwards, so that of several pieces with one id the first one counts.
        self._to_model[self._to_ours[::-1]] = np.arange(len(own))[::-1]
        inside = [not piece.startswith("▁") for piece in pieces]
        super().__init__(files, pieces, np.array(inside, bool))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        return cls(files)

    @classmethod
    def from_config(cls, config: SentencePieceTokenizer.Config) -> Self:
        path = inside(config.vocab, MODEL)
        content = read_bytes(path, "SentencePiece model")
        names = _pieces(_check_model(path, content, config.ids), config.ids == "xlmr")
        files = {MODEL: content}
        if config.numbers is not None:
            numbers = read_json_vocabulary(config.numbers)
            names = _numbered(numbers)
            files[JSON_VOCABULARY] = json.dumps(numbers, ensure_ascii=False).encode()
        options: dict[str, object] = {"ids": config.ids}
        if config.lowercase:
            options["lowercase"] = True
        files |= cls.describe(config, names, **options)
        if config.numbers is not None and json.loads(files[DESCRIPTION])["specials"]["unk"] is None:
            raise DataError(f"{config.numbers} has no `<unk>`; name it with tokenizer.specials.unk")
        return cls(files)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self._encode(texts)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        encoded = self._encode(texts)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        flat = np.concatenate(encoded) if encoded else np.zeros(0, np.int32)
        return flat.astype(np.uint32), lengths

    def encode_ends(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        texts = self._prepared(texts)
        encoded = self._model.encode(texts, return_type="offset_mapping", num_threads=1)
        return [
            (self._to_ours[e["ids"]].tolist(), [end for _, end in e["offsets"]])
            if e["ids"]
            else ([], [])
            for e in encoded
        ]

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        return [ids or [self.require("unk")] for ids in self.encode_batch(words)]

    def _encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        encoded = self._model.encode(self._prepared(texts), return_type="numpy", num_threads=1)
        return [self._to_ours[ids] for ids in encoded]

    def _prepared(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() for text in texts] if self._is_lower else list(texts)

    def _decode(self, ids: list[int]) -> str:
        parts: list[str] = []
        for is_special, run in groupby(ids, self.special_ids.__contains__):
            if is_special:
                parts += [self.token(number) for number in run]
            else:
                parts.append(self._model.decode(self._to_model[list(run)].tolist()))
        return " ".join(parts)


def _open(content: bytes) -> tuple[sentencepiece.SentencePieceProcessor, list[str]]:
    """A model and its pieces."""
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise DataError("the content is not that of a SentencePiece model") from error
    return model, [model.id_to_piece(number) for number in range(len(model))]


def _pieces(own: Sequence[str], is_xlmr: bool) -> list[str]:
    """Pieces by our ids."""
    return [*FIRST_OF_XLMR, *own[3:], "<mask>"] if is_xlmr else list(own)


def _numbered(numbers: Mapping[str, int]) -> list[str]:
    """Pieces by their `numbers`."""
    pieces = [""] * (max(numbers.values()) + 1)
    for piece, number in numbers.items():
        pieces[number] = piece
    return pieces


def _check_model(path: Path, content: bytes, ids: str) -> list[str]:
    """The pieces of a model file, if it can be used."""
    try:
        own = _open(content)[1]
    except DataError as error:
        raise DataError(f"{path} cannot be used: {error}") from error
    if ids == "xlmr" and own[:3] != ["<unk>", "<s>", "</s>"]:
        raise DataError(
            f"{path} begins with the pieces {own[:3]}, but the numbering `xlmr` needs a model that "
            f"begins with `<unk>`, `<s>`, `</s>`; leave `tokenizer.ids` at `model`"
        )
    return own
