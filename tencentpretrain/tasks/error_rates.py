"""How far texts are from what should have been written: rates of wrong words and characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def edit_distance(given: Sequence[str], found: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that make `found` of `given` (Levenshtein)."""
    numbers = {unit: number for number, unit in enumerate({*given, *found})}
    columns = np.array([numbers[unit] for unit in found], np.int64)
    places = np.arange(len(found) + 1)
    costs = places.copy()
    for number, unit in enumerate(given, start=1):
        exchanged = costs[:-1] + (columns != numbers[unit])
        costs = np.concatenate([[number], np.minimum(costs[1:] + 1, exchanged)])
        # Insertions: each place is reached from any before it, at one for each step.
        costs = np.minimum.accumulate(costs - places) + places
    return int(costs[-1])


def error_rates(given: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """Errors over all texts per word ("wer") and per character ("cer") of the texts `given`.

    Words are what spaces separate; of characters, spaces count, but not around a text.
    """
    words = [(text.split(), answer.split()) for text, answer in zip(given, found, strict=True)]
    characters = [(" ".join(text), " ".join(answer)) for text, answer in words]
    return {"wer": _rate(words), "cer": _rate(characters)}


def _rate(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    total = sum(len(given) for given, _ in pairs)
    return sum(edit_distance(*pair) for pair in pairs) / max(total, 1)
