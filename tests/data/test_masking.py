import numpy as np
import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.masking import (
    Masker,
    MaskingConfig,
    choose_words,
    count_masked,
    place_spans,
    span_lengths,
    span_limits,
    word_numbers,
)
from tencentpretrain.data.order import generator
from tests.helpers.shards import SPECIALS, FakeTokenizer

VOCABULARY = FakeTokenizer()
KINDS = ["token", "word", "span"]


def row(size: int, key: int = 0) -> np.ndarray:
    """[cls] A [sep] B [sep] with `size` ordinary tokens."""
    text = generator(99, key).integers(SPECIALS, VOCABULARY.vocab_size, size)
    half = size // 2
    specials = ([VOCABULARY.cls], [VOCABULARY.sep])
    return np.concatenate([specials[0], text[:half], specials[1], text[half:], specials[1]])


def masker(kind: str, **values: float) -> Masker:
    return Masker(MaskingConfig(masking=kind, **values), VOCABULARY)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 30, 125, 1000])
def test_never_a_special_token_and_nothing_but_the_chosen_changes(kind, size):
    for key in range(20):
        ids = row(size, key)
        before = ids.copy()
        inputs, index = masker(kind)(ids, generator(key))
        assert np.array_equal(ids, before)
        assert not np.isin(ids[index], list(VOCABULARY.special_ids)).any()
        assert (np.diff(index) > 0).all()
        others = np.setdiff1d(np.arange(len(ids)), index)
        assert np.array_equal(inputs[others], ids[others])
        replaced = inputs[index]
        assert ((replaced == VOCABULARY.mask) | (replaced >= SPECIALS)).all()


@pytest.mark.parametrize("kind", ["token", "span"])
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4, 0.9])
@pytest.mark.parametrize("size", [1, 3, 10, 33, 125])
def test_d26_count_is_exact(kind, rate, size):
    for key in range(20):
        _, index = masker(kind, mask_rate=rate)(row(size), generator(key))
        assert len(index) == count_masked(size, rate) == max(1, int(size * rate + 0.5))


def test_count_of_words_is_as_near_as_whole_words_allow():
    for key in range(100):
        ids = row(125, key)
        _, index = masker("word")(ids, generator(key))
        # Words of one token are frequent here, so that the budget can always be filled.
        assert len(index) == count_masked(125, 0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_text_has_no_masks(kind):
    ids = np.array([VOCABULARY.cls, VOCABULARY.unk, VOCABULARY.sep])
    inputs, index = masker(kind)(ids, generator(0))
    assert len(index) == 0
    assert np.array_equal(inputs, ids)


@pytest.mark.parametrize("kind", KINDS)
def test_each_text_token_is_hidden_equally_often(kind):
    ids = row(40)
    counts = np.zeros(len(ids))
    for key in range(3000):
        counts[masker(kind)(ids, generator(key))[1]] += 1
    special = np.isin(ids, list(VOCABULARY.special_ids))
    assert (counts[special] == 0).all()
    assert counts[~special].sum() == 3000 * 6
    # 450 expected for each, with a standard deviation of 20; long words fit less often.
    assert counts[~special].min() > 450 - (180 if kind == "word" else 80)
    assert counts[~special].max() < 450 + (180 if kind == "word" else 80)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_of_ten_are_masked_one_is_random_one_is_kept(kind):
    masked = random = kept = 0
    for key in range(800):
        ids = row(125, key)
        inputs, index = masker(kind)(ids, generator(key))
        masked += (inputs[index] == VOCABULARY.mask).sum()
        kept += (inputs[index] == ids[index]).sum()
        random += ((inputs[index] != VOCABULARY.mask) & (inputs[index] != ids[index])).sum()
    total = masked + random + kept
    # 15,200 tokens, or about 4,500 spans: the standard deviation is below 0.007.
    assert abs(masked / total - 0.8) < 0.025
    assert abs(random / total - 0.1) < 0.02
    assert abs(kept / total - 0.1) < 0.02


def test_rates_are_configurable_and_random_ids_are_all_ordinary_ones():
    ids = row(1000)
    inputs, index = masker("token", mask_rate=0.9, mask_token_rate=0.0, random_token_rate=1.0)(
        ids, generator(0)
    )
    assert not np.isin(inputs[index], list(VOCABULARY.special_ids)).any()
    assert inputs[index].min() < 50
    assert inputs[index].max() > VOCABULARY.vocab_size - 50
    kept, index = masker("token", mask_token_rate=0.0, random_token_rate=0.0)(ids, generator(0))
    assert len(index) == 150
    assert np.array_equal(kept, ids)


def test_one_choice_for_a_whole_span():
    ids = row(1000)
    for key in range(20):
        inputs, index = masker("span", random_token_rate=0.0)(ids, generator(key))
        masked = inputs[index] == VOCABULARY.mask
        # Spans are a token apart, so neighbours are of one span, unless they meet where the row
        # was turned: at most one place, and there the two parts are drawn apart.
        joined = np.diff(index) == 1
        assert (masked[1:][joined] != masked[:-1][joined]).sum() <= 1
        assert not masked.all()


def test_span_lengths_fill_the_budget_and_are_geometric():
    limits = span_limits(0.2, 10)
    lengths = np.concatenate([span_lengths(500, limits, generator(k)) for k in range(40)])
    assert lengths.sum() == 40 * 500
    assert lengths.min() == 1
    assert lengths.max() == 10
    # The mean of SpanBERT, section 3.1.
    assert abs(lengths.mean() - 3.8) < 0.15
    assert span_lengths(3, span_limits(0.2, 1), generator(0)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("budget", "tokens"), [(1, 1), (5, 5), (18, 125), (60, 100), (90, 100)])
def test_spans_do_not_overlap_and_stay_inside(budget, tokens):
    for key in range(100):
        random = generator(key)
        lengths = span_lengths(budget, span_limits(0.2, 10), random)
        starts = place_spans(lengths, tokens, random)
        assert starts.min() >= 0
        assert (starts + lengths).max() <= tokens
        is_tight = len(lengths) > tokens - budget + 1
        assert (starts[1:] - (starts + lengths)[:-1] >= (0 if is_tight else 1)).all()


def test_d26_a_span_never_crosses_a_special_token():
    ids = np.array([2, 10, 11, 3, 12, 13, 3])
    both = {tuple(masker("span", mask_rate=0.5)(ids, generator(k))[1]) for k in range(200)}
    assert both == {(1, 2), (1, 4), (1, 5), (2, 4), (2, 5), (4, 5)}
    # The span over [sep] is two spans: one may be masked and the other random.
    choices = set()
    for key in range(400):
        inputs, index = masker("span", mask_rate=0.5, mask_token_rate=0.5)(ids, generator(key))
        if tuple(index) == (2, 4):
            choices.add(tuple((inputs[index] == VOCABULARY.mask).tolist()))
    assert len(choices) == 4


def words_of(ids: np.ndarray, begins: np.ndarray) -> list[set[int]]:
    """Positions of each word, by the plain definition."""
    words: list[set[int]] = []
    previous = -2
    for position, token in enumerate(ids.tolist()):
        if token in VOCABULARY.special_ids:
            continue
        if begins[position] or position != previous + 1:
            words.append(set())
        words[-1].add(position)
        previous = position
    return words


@pytest.mark.parametrize("is_stored", [False, True])
def test_words_are_hidden_whole(is_stored):
    for key in range(100):
        ids = row(60, key)
        stored = generator(5, key).random(len(ids)) < 0.4 if is_stored else None
        _, index = masker("word")(ids, generator(key), stored)
        begins = ~VOCABULARY.continues[ids] if stored is None else stored
        for word in words_of(ids, begins):
            assert not word & set(index.tolist()) or word <= set(index.tolist())
        assert len(index) <= count_masked(60, 0.15)


def test_words_that_exceed_the_budget_are_skipped_unless_all_do():
    ids = np.arange(10, 30)
    begins = np.zeros(20, bool)
    begins[[0, 9, 14, 18, 19]] = True  # words of 9, 5, 4, 1 and 1 tokens
    numbers = word_numbers(np.arange(20), begins)
    assert np.bincount(numbers).tolist() == [9, 5, 4, 1, 1]
    for key in range(50):
        chosen = choose_words(numbers, 2, generator(key))
        assert chosen.tolist() == [18, 19]
    _, index = masker("word")(ids[:18], generator(0), begins[:18])
    assert index.tolist() == [14, 15, 16, 17]  # the shortest, though it exceeds the budget of 3


def test_draws_are_a_function_of_the_generator():
    for kind in KINDS:
        first = masker(kind)(row(50), generator(1))
        again = masker(kind)(row(50), generator(1))
        other = masker(kind)(row(50), generator(2))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first[1], other[1])


def test_contradictory_rates_are_refused():
    with pytest.raises(ConfigError, match=r"must be at most 1, but is 1\.1"):
        decode(MaskingConfig, {"random_token_rate": 0.3})
    with pytest.raises(ConfigError, match="mask_rate: must be > 0"):
        decode(MaskingConfig, {"mask_rate": 0})
    with pytest.raises(ValueError, match="mask token"):
        Masker(MaskingConfig(), FakeTokenizer(missing=["mask"]))
