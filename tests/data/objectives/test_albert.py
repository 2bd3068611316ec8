from collections import Counter

import pytest

from tencentpretrain.types import IGNORE
from tests.data.objectives.test_bert import halves
from tests.helpers.objectives import objective
from tests.helpers.shards import numbered_shards, random_shards


@pytest.mark.parametrize("length", [12, 40, 128])
def test_d17_an_epoch_reads_each_token_once(length):
    made = objective("albert", random_shards(60), length=length)
    for epoch in range(2):
        seen: Counter[int] = Counter()
        for index in range(len(made)):
            a, b = halves(made, epoch, index)
            seen.update(a + b)
        assert seen.total() == len(seen) == made.shards.tokens


def test_labels_say_whether_the_halves_are_exchanged():
    made = objective("albert", random_shards(60), length=40)
    labels = Counter()
    for index in range(len(made)):
        a, b = halves(made, 0, index)
        label = int(made.make(0, index)["row_label"][0])
        labels[label] += 1
        if label == 0:
            assert b[0] == a[-1] + 1
        elif label == 1:
            assert a[0] == b[-1] + 1
        else:
            assert (label, len(a), b) == (IGNORE, 1, [])
    assert 0.4 < labels[1] / len(made) < 0.6


def test_the_order_changes_between_epochs():
    made = objective("albert", numbered_shards([[5, 6, 7]] * 100), length=40, short_rate=0.0)
    labels = [[made.plan(epoch, i).label for i in range(100)] for epoch in range(2)]
    assert 30 < sum(a == b for a, b in zip(*labels, strict=True)) < 70
    # Split after 5 or 11 tokens; the first half ends there, or at 18 where it stands last.
    assert {made.plan(0, i).a.stop for i in range(100)} == {5, 11, 18}


def test_labels_are_collated_under_sop():
    made = objective("albert", numbered_shards([[5, 6], [1]]), length=16, short_rate=0.0)
    batch = made.collate([made.make(0, 0), made.make(0, 1)])
    assert {*batch.labels} == {"mlm", "sop"}
    assert batch.labels["sop"].values[1] == IGNORE
