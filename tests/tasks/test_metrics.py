import warnings

import numpy as np
import pytest
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.metrics import precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score

from tencentpretrain.tasks.metrics import accuracy, entity_scores, find_entities, macro_f1


@pytest.mark.parametrize("seed", range(8))
def test_scores_of_classes_equal_those_of_sklearn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    classes = int(draw.integers(2, 9))
    # Class 3 is never predicted, class 1 never given, and some do not occur at all.
    labels = draw.choice([c for c in range(classes + 1) if c != 1], 60)
    predicted = draw.choice([c for c in range(classes) if c != 3], 60)
    labels[::2] = predicted[::2]
    assert accuracy(labels, predicted) == pytest.approx(accuracy_score(labels, predicted))
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert macro_f1(labels, predicted) == pytest.approx(expected)


def test_scores_of_nothing() -> None:
    nothing = np.array([], np.int64)
    assert accuracy(nothing, nothing) == macro_f1(nothing, nothing) == 0.0
    assert entity_scores([[]], [[]]) == (0.0, 0.0, 0.0)


def random_tags(draw: np.random.Generator, prefixes: str) -> list[list[str]]:
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("A", "B-C"))]
    return [draw.choice(tags, int(draw.integers(0, 12))).tolist() for _ in range(50)]


@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES"])
@pytest.mark.parametrize("seed", range(3))
def test_entities_equal_those_of_seqeval(seed: int, prefixes: str) -> None:
    draw = np.random.default_rng(seed)
    given = random_tags(draw, prefixes)
    found = [
        [tag if draw.random() < 0.7 else "O" for tag in tags]
        if draw.random() < 0.7
        else draw.permutation(tags).tolist()
        for tags in given
    ]
    for tags in given:
        # The end that seqeval names is the last word, not the one behind it.
        expected = [(kind, start, end + 1) for kind, start, end in get_entities(tags)]
        assert find_entities(tags) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected_scores = (
            precision_score(given, found),
            recall_score(given, found),
            seqeval_f1(given, found),
        )
    assert entity_scores(given, found) == pytest.approx(expected_scores)


def test_both_borders_and_the_kind_must_be_right() -> None:
    given = [["B-A", "I-A", "O", "B-B"]]
    assert entity_scores(given, [["B-A", "O", "O", "B-B"]]) == (0.5, 0.5, 0.5)
    assert entity_scores(given, [["B-A", "I-A", "O", "B-A"]]) == (0.5, 0.5, 0.5)
    assert entity_scores(given, [["O", "O", "O", "O"]]) == (0.0, 0.0, 0.0)
