"""Sizes that the parts of one model share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Run-time sizes of the source or of the target side of a model.

    Args:
        hidden: Width D.
        embedding: Width E of the parts of the embedding; D unless factorised.
        vocabulary: Entries V of the word table.
        source: For a decoder, the width of what the encoder returns; None is D.
    """

    hidden: int
    embedding: int
    vocabulary: int
    source: int | None = None
