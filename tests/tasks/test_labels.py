from pathlib import Path

import pytest

from tencentpretrain.errors import DataError
from tencentpretrain.tasks.labels import LabelSet, label_of
from tencentpretrain.tasks.table import Row


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "2", "-1", "2", "0"], ("-1", "0", "2", "10")),
        (["10", "2", "x"], ("10", "2", "x")),
        (["01", "2", "10"], ("01", "10", "2")),
        (["1.5", "-2"], ("-2", "1.5")),
        (["负", "正"], ("正", "负")),
        (["b", "B", "a"], ("B", "a", "b")),
    ],
)
def test_the_order_depends_on_the_labels_alone(labels: list[str], names: tuple[str, ...]) -> None:
    assert LabelSet.sorted(labels).names == names
    assert LabelSet.sorted(reversed(labels)).names == names


def test_numbers_are_places() -> None:
    labels = LabelSet.sorted(["b", "a", "c"])
    assert [labels.number(name, "") for name in labels] == [0, 1, 2]


def test_an_unknown_label_is_named_with_its_place() -> None:
    labels = LabelSet(["positive", "negative"])
    with pytest.raises(DataError) as error:
        labels.number("postive", "dev.tsv, line 7")
    assert str(error.value) == (
        "dev.tsv, line 7: the label `postive` is not in the training data; did you mean `positive`?"
    )


def row(label: str) -> Row:
    return Row((label,), {"label": 0}, Path("a.tsv"), 3)


def test_spaces_around_a_label_do_not_count() -> None:
    assert label_of(row(" a b "), "label") == "a b"


@pytest.mark.parametrize(
    ("label", "message"), [(" ", "line 3 has no label"), ("a\tb", "must not hold tabs")]
)
def test_unusable_labels(label: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        label_of(row(label), "label")
