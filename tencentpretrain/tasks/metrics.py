"""Scores over whole data sets, which no mean over batches would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tencentpretrain.data.packing import Integers


def accuracy(labels: Integers, predicted: Integers) -> float:
    """Share of `predicted` [N] that equals `labels` [N]; 0 where there is nothing."""
    return float((labels == predicted).mean()) if len(labels) else 0.0


def macro_f1(labels: Integers, predicted: Integers) -> float:
    """Mean F1 of the classes that are among `labels` [N] or `predicted` [N]."""
    if not len(labels):
        return 0.0
    classes = int(max(labels.max(), predicted.max())) + 1
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    # F1 = 2 tp / (2 tp + fp + fn), and the denominator counts both how often a class was given
    # and how often it was found.
    counts = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    present = counts > 0
    return float((2 * hits[present] / counts[present]).mean())


class Entity(NamedTuple):
    """Words [start, stop) of a sentence that are one `kind` of entity."""

    kind: str
    start: int
    stop: int


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """Entities in tags of the kinds BIO, IOB and BIOES, as the CoNLL 2000 script counts them.

    An entity is a run of tags of one kind. It ends behind E and S and before B and S; a run that
    begins with I or E, which no correct tagging has, counts as an entity too.
    """
    found: list[Entity] = []
    prefix, kind, start = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        before, kind_before = prefix, kind
        prefix, kind = tag[:1], tag[2:]
        if before in "BI" and prefix in "IE" and kind == kind_before:
            continue
        if before != "O":
            found.append(Entity(kind_before, start, place))
        start = place
    return found


class Scores(NamedTuple):
    """Precision, recall and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def entity_scores(tags: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Scores:
    """Scores of whole entities over all sentences: kind and borders must both be right."""
    given = found = right = 0
    for tags_given, tags_found in zip(tags, predicted, strict=True):
        entities = set(find_entities(tags_given))
        answers = set(find_entities(tags_found))
        given, found = given + len(entities), found + len(answers)
        right += len(entities & answers)
    precision, recall = right / max(found, 1), right / max(given, 1)
    return Scores(precision, recall, 2 * right / max(given + found, 1))
