from collections import Counter

import numpy as np
import pytest

from tencentpretrain.data.objectives.bert import IS_NEXT, RANDOM_NEXT, choose_splits
from tencentpretrain.types import IGNORE
from tests.helpers.objectives import objective, original
from tests.helpers.shards import numbered_shards, random_shards


def halves(made, epoch: int, index: int) -> tuple[list[int], list[int]]:
    """Ids of A and B of a row, checked to be [cls] A [sep] B [sep] with segments 0 and 1."""
    example = made.make(epoch, index)
    ids, segments = original(example), example["segments"]
    sep = (ids == made.tokenizer.sep).nonzero()[0]
    assert ids[0] == made.tokenizer.cls
    assert sep[-1] == len(ids) - 1
    assert len(ids) <= made.config.length
    assert segments.tolist() == [0] * (sep[0] + 1) + [1] * (len(ids) - sep[0] - 1)
    text = ids.tolist()
    return text[1 : sep[0]], text[sep[0] + 1 : -1]


def owners(shards) -> dict[int, int]:
    return {int(token): number for number, text in enumerate(shards.texts) for token in text}


@pytest.mark.parametrize("length", [12, 40, 128])
def test_an_epoch_reads_each_token_once_except_those_counted_as_cut(length):
    shards = random_shards(60)
    made = objective("bert", shards, length=length)
    for epoch in range(3):
        seen: Counter[int] = Counter()
        for index in range(len(made)):
            a, b = halves(made, epoch, index)
            seen.update(a)
            seen.update(b)
        assert seen.total() == len(seen)  # nothing is doubled
        cut = sum(made.plan(epoch, index).cut for index in range(len(made)))
        assert seen.total() + cut == shards.tokens
        assert cut < 0.1 * shards.tokens


def test_labels_say_whether_the_second_half_follows_the_first():
    made = objective("bert", random_shards(60), length=40)
    document = owners(made.shards)
    labels = Counter()
    for index in range(len(made)):
        a, b = halves(made, 0, index)
        label = int(made.make(0, index)["row_label"][0])
        labels[label] += 1
        if label == IS_NEXT:
            assert b[0] == a[-1] + 1  # ids grow by one through the corpus
        elif label == RANDOM_NEXT:
            assert document[a[0]] != document[b[0]]
        else:
            assert (label, len(a), b) == (IGNORE, 1, [])
        assert len({document[token] for token in a}) == 1
        assert len({document[token] for token in b}) <= 1
    assert 0.4 < labels[RANDOM_NEXT] / len(made) < 0.6
    assert labels[IS_NEXT] + labels[RANDOM_NEXT] > 0.97 * len(made)


def test_partners_exchange_their_second_halves_both_ways():
    made = objective("bert", random_shards(60), length=40)
    starts = {tuple(made.plan(2, i).a[:2]): i for i in range(len(made))}
    assert len(starts) == len(made)
    for index in range(len(made)):
        partner = made._partner(2, index)
        assert made._partner(2, partner) == index
        assert (made.plan(2, index).label == RANDOM_NEXT) == (
            made.plan(2, partner).label == RANDOM_NEXT
        )


def test_partners_and_decisions_change_between_epochs():
    made = objective("bert", random_shards(60), length=40)
    partners = np.array([[made._partner(e, i) for i in range(len(made))] for e in range(2)])
    assert (partners[0] == partners[1]).mean() < 0.1
    labels = np.array([[made.plan(e, i).label for i in range(len(made))] for e in range(2)])
    assert 0.3 < (labels[0] == labels[1]).mean() < 0.7


def test_halves_are_split_between_sentences_where_there_are_some():
    shards = numbered_shards([[5, 6, 7, 8]] * 40)
    made = objective("bert", shards, length=32, short_rate=0.0)
    borders = set(shards.sentence_boundaries()[0].tolist())
    for index in range(len(made)):
        pair = made.plan(0, index)
        assert pair.b is not None
        # All documents have 26 tokens, and every chunk is a document.
        assert 26 * pair.a.document + pair.a.stop in borders
        assert 26 * pair.b.document + pair.b.start in borders
        assert pair.cut == 0


def test_a_single_sentence_is_split_inside():
    made = objective("bert", numbered_shards([[20]] * 50), length=32, short_rate=0.0)
    splits = {made.plan(0, index).a.stop for index in range(len(made))}
    assert min(splits) >= 1
    assert max(splits) <= 19
    assert len(splits) > 8


def test_one_document_and_an_odd_chunk_keep_their_own_text():
    one = objective("bert", numbered_shards([[7] * 30]), length=16)
    assert {one.plan(0, index).label for index in range(len(one))} == {IS_NEXT}
    alone = objective("bert", numbered_shards([[4, 5]]), length=16, short_rate=0.0)
    assert len(alone) == 1
    assert alone.plan(0, 0).label == IS_NEXT


def test_a_single_token_has_no_second_half_and_no_label():
    made = objective("bert", numbered_shards([[1], [6, 6]]), length=16, short_rate=0.0)
    assert [made.plan(epoch, 0).label for epoch in range(8)] == [IGNORE] * 8
    assert [made.plan(epoch, 1).label for epoch in range(8)] == [IS_NEXT] * 8
    batch = made.collate([made.make(0, 0), made.make(0, 1)])
    assert batch.labels["nsp"].values.tolist() == [IGNORE, IS_NEXT]
    assert batch.labels["nsp"].index is None


def test_splits_avoid_what_does_not_fit():
    low, high = np.array([3, 10, 25]), np.array([4, 11, 20])
    # Both chunks fill the room of 30: only equal first halves would fit exactly.
    found = {choose_splits(low, high, (30, 30, 30), chance) for chance in range(20)}
    assert found == {(3, 4), (10, 11)}
    found = {choose_splits(low, high, (26, 27, 30), chance) for chance in range(20)}
    assert found == {(3, 4), (10, 11)}
    found = {choose_splits(low, high, (30, 30, 60), chance) for chance in range(20)}
    assert len(found) == 9


@pytest.mark.parametrize(
    ("front", "kept_a", "kept_b"),
    [
        (18, [(0, 2), (16, 18)], [(2, 20)]),  # 18 + 18 tokens: the first half is cut to 2
        (16, [(0, 16)], [(3, 7), (16, 20)]),  # 16 + 17 tokens: the second half is cut to 4
    ],
)
def test_excess_is_cut_from_either_end_of_the_longer_half(front, kept_a, kept_b):
    early = 20 - front - (1 if front == 16 else 0)
    shards = numbered_shards([[early, 20 - early], [front, 20 - front]] * 100)
    made = objective("bert", shards, length=23, short_rate=0.0)
    found = Counter()
    for index in range(len(made)):
        pair = made.plan(0, index)
        assert pair.b is not None
        a, b = tuple(pair.a[1:]), tuple(pair.b[1:])
        if pair.cut:
            # The partners are split after `front` and `early` tokens, as they only can be.
            assert (pair.a.document % 2, pair.b.document % 2) == (1, 0)
            assert pair.cut == front + 20 - early - 20
            found[a, b] += 1
        elif pair.a.document % 2 == pair.b.document % 2:
            assert (pair.a.stop, pair.b.start) == (a[1], a[1])
    assert {*found} == {(a, b) for a in kept_a for b in kept_b}
    assert min(found.values()) > 5


def test_only_the_given_documents_are_read():
    shards = random_shards(40)
    documents = np.arange(0, 40, 3)
    made = objective("bert", shards, documents=documents, length=40)
    used = {d for i in range(len(made)) for half in made.plan(0, i)[:2] if half for d in [half[0]]}
    assert used == set(documents.tolist())
