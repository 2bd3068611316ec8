import numpy as np
import pytest

from tencentpretrain.config import ConfigError
from tencentpretrain.data.masking import count_masked
from tencentpretrain.data.objectives.bart import permute_sentences
from tests.helpers.denoise import denoising, rows, texts
from tests.helpers.shards import numbered_shards, random_shards


def inner(made, row):
    """A row without its [bos] and [eos]."""
    assert (row[0], row[-1]) == (made.tokenizer.bos, made.tokenizer.eos)
    return row[1:-1]


def hidden_spans(made, source, target):
    """Of a row in its order, how many tokens each run of masks stands for, and the masks of it."""
    text, place, spans = inner(made, target), 0, []
    for token in inner(made, source):
        if token == made.tokenizer.mask:
            if not spans or spans[-1][2] != place:
                spans.append([0, 0, place])
            spans[-1][1] += 1
            continue
        skipped = text.index(token) - place
        if skipped:
            spans[-1][0] += skipped
        place += skipped + 1
    if place < len(text):
        spans[-1][0] += len(text) - place
    return [(size, masks) for size, masks, _ in spans]


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("permute_rate", [0.0, 1.0])
def test_the_target_is_the_text_and_the_source_hides_its_share(rate, permute_rate):
    shards = random_shards(60)
    values = {"length": 60, "mask_rate": rate, "permute_rate": permute_rate}
    made, restored = denoising("bart", shards, **values), []
    for source, target in rows(made, 1):
        text = inner(made, target)
        restored += text
        kept = [token for token in inner(made, source) if token != made.tokenizer.mask]
        assert len(text) - len(kept) == count_masked(len(text), rate)
        assert len(set(kept)) == len(kept)
        assert set(kept) <= set(text)  # neither random tokens nor kept ones: no 80/10/10
        assert len(kept) < len(source) - 2
    assert restored == texts(shards)


def test_lengths_of_spans_are_those_of_the_published_procedure():
    made = denoising("bart", numbered_shards([[1], *[[100]] * 200]), length=102, permute_rate=0.0)
    sizes, masks = [], 0
    for epoch in range(3):
        for source, target in rows(made, epoch)[1:]:
            spans = hidden_spans(made, source, target)
            assert sum(size for size, _ in spans) == 30
            sizes += [size for size, _ in spans if size]
            masks += sum(count for _, count in spans)
    # Draw until 30 tokens are hidden and clip the last length; zeros insert a mask.
    draw, expected, drawn = np.random.default_rng(0), [], 0
    for _ in range(1500):
        left = 30
        while left:
            length = min(int(draw.poisson(3)), left)
            left -= length
            drawn += 1
            expected += [length] if length else []
    assert np.mean(sizes) == pytest.approx(np.mean(expected), rel=0.03)
    assert masks / 600 == pytest.approx(drawn / 1500, rel=0.03)
    for size in range(1, 7):
        shares = [np.mean(np.array(found) == size) for found in (sizes, expected)]
        assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_a_span_is_one_mask():
    made = denoising("bart", numbered_shards([[1], *[[100]] * 40]), length=102, permute_rate=0.0)
    for source, target in rows(made)[1:]:
        # Without inserted masks there are as many masks as spans, none beside another.
        spans = hidden_spans(made, source, target)
        single = [count for size, count in spans if size]
        assert np.mean(np.array(single) == 1) > 0.8
        assert max(single) <= 3


def test_spans_of_no_token_find_no_room_in_rows_that_are_full():
    made = denoising("bart", numbered_shards([[6]] * 200), length=8, mean_span=0.3)
    lengths = {len(source) for source, _ in rows(made)}
    assert max(lengths) == 8


def test_sentences_are_moved_whole():
    shards = numbered_shards([[5, 9, 2, 7, 4]] * 50)
    made = denoising("bart", shards, length=32, mask_rate=0.01)
    orders = set()
    for source, target in rows(made):
        text = inner(made, target)
        ends = np.cumsum([5, 9, 2, 7, 4])
        sentence = {t: int(ends.searchsorted(n, side="right")) for n, t in enumerate(text)}
        kept = [token for token in inner(made, source) if token != made.tokenizer.mask]
        order = list(dict.fromkeys(sentence[token] for token in kept))
        assert kept == sorted(kept, key=lambda token: (order.index(sentence[token]), token))
        orders.add(tuple(order))
    assert len(orders) > 30


def test_a_part_of_the_sentences_is_moved():
    random = np.random.default_rng(0)
    ends = np.arange(1, 11)
    moved = [(permute_sentences(ends, 0.4, random) != ends - 1).sum() for _ in range(200)]
    assert max(moved) == 4
    assert np.mean(moved) == pytest.approx(3, abs=0.25)  # one of four stays by chance
    assert permute_sentences(ends, 0.0, random).tolist() == [*range(10)]
    orders = {tuple(permute_sentences(np.array([2, 3]), 1.0, random)) for _ in range(20)}
    assert orders == {(0, 1, 2), (2, 0, 1)}


def test_a_target_that_cannot_hold_the_text_is_refused():
    shards = numbered_shards([[12]])
    with pytest.raises(ConfigError, match="target_length must be at least length=256, since"):
        denoising("bart", shards, length=256)
    denoising("bart", shards, length=256, target_length=256)
