"""How far down what belongs together is found."""

from __future__ import annotations

import numpy as np
import pytest

from tencentpretrain.tasks.ranking import first_ranks, recalls


def test_the_best_relevant_one_counts() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.3], [4.0, 3.0, 2.0, 1.0]])
    relevant = np.array([[True, False, False, True], [True, True, False, False]])
    assert first_ranks(scores, relevant).tolist() == [2, 0]


def test_it_equals_sorting() -> None:
    random = np.random.default_rng(0)
    scores, relevant = random.random((50, 20)), random.random((50, 20)) < 0.2
    relevant[:, 3] = True
    expected = [
        min(place for place, column in enumerate(np.argsort(-row)) if mark[column])
        for row, mark in zip(scores, relevant, strict=True)
    ]
    assert first_ranks(scores, relevant).tolist() == expected


def test_scores_that_are_all_alike_find_nothing() -> None:
    ranks = first_ranks(np.zeros((3, 30)), np.eye(3, 30, dtype=bool))
    assert recalls(ranks) == {"recall@1": 0.0, "recall@5": 0.0, "recall@10": 0.0}


def test_recall_is_the_share_within_a_depth() -> None:
    assert recalls(np.array([0, 0, 3, 7, 12])) == {
        "recall@1": pytest.approx(0.4),
        "recall@5": pytest.approx(0.6),
        "recall@10": pytest.approx(0.8),
    }


def test_a_row_without_anything_relevant_is_refused() -> None:
    with pytest.raises(ValueError, match="something that is relevant"):
        first_ranks(np.zeros((2, 3)), np.array([[True, False, False], [False] * 3]))
