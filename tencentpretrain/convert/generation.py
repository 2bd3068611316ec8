"""How texts are generated, as `transformers` keeps it beside a model; nothing here reads it.

Suppressed tokens, languages and tasks in it are ids, which mean nothing in another vocabulary. So
what the vocabulary was is kept with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tencentpretrain.convert.family import Family
from tencentpretrain.convert.weights import read_json
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.train.tensor_file import LazyTensors

THEIRS: Final = "generation_config.json"
OURS: Final = "generation.json"
"""File of a converted checkpoint with the content of theirs and the vocabulary that it is about."""
NOT_KEPT: Final = ("auto_map",)
"""Keys that name code."""


@dataclass(frozen=True)
class Vocabulary:
    """What ids of a model mean, as far as it can be told.

    Args:
        rows: Of its table of words; None where it has none.
        tokenizer: Fingerprint; None where it has none.
    """

    rows: int | None
    tokenizer: str | None

    @classmethod
    def of(cls, family: Family, tensors: LazyTensors, tokenizer: Tokenizer | None) -> Vocabulary:
        """That of a model of ours with `tensors`, which was or becomes one of `family`."""
        words = None if family.words is None else tensors.described.get(family.words)
        fingerprint = None if tokenizer is None else tokenizer.fingerprint
        return cls(None if words is None else len(words), fingerprint)


def kept_generation(folder: Path, vocabulary: Vocabulary) -> dict[str, bytes]:
    """The file that keeps what a folder of theirs says, by its name; nothing where it says nothing.

    Raises:
        CheckpointError: if it is damaged.
    """
    if not (folder / THEIRS).is_file():
        return {}
    content = {k: v for k, v in read_json(folder / THEIRS).items() if k not in NOT_KEPT}
    return {
        OURS: _json({"rows": vocabulary.rows, "tokenizer": vocabulary.tokenizer, "theirs": content})
    }


def generation_file(kept: Path, vocabulary: Vocabulary) -> dict[str, bytes]:
    """Their file again, by its name; nothing where the vocabulary became another.

    Raises:
        CheckpointError: if `kept`, which `kept_generation` made, is damaged.
    """
    content = read_json(kept)
    was = Vocabulary(content.get("rows"), content.get("tokenizer"))
    return {THEIRS: _json(content.get("theirs") or {})} if was == vocabulary else {}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
