"""Sizes that the parts of one model share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Run-time sizes: `hidden` D, `embedding` E (equal to D unless factorised), `vocabulary` V."""

    hidden: int
    embedding: int
    vocabulary: int
