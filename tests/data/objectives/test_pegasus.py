from collections import Counter

import numpy as np
import pytest

from tencentpretrain.config import ConfigError
from tencentpretrain.data.masking import count_masked
from tencentpretrain.data.objectives.pegasus import rouge
from tencentpretrain.errors import DataError
from tests.helpers.denoise import NamedTokenizer, denoising, rows, texts
from tests.helpers.objectives import objective
from tests.helpers.shards import FakeShards, numbered_shards, random_shards

SELECTIONS = ["rouge", "lead", "random"]


def plain_rouge(sentences):
    """F1 of shared tokens, each counted as often as both have it, straight from the definition."""
    scores = []
    for number, sentence in enumerate(sentences):
        rest = Counter(
            token for other in sentences[:number] + sentences[number + 1 :] for token in other
        )
        shared = sum((Counter(sentence) & rest).values())
        precision, recall = shared / len(sentence), shared / max(rest.total(), 1)
        scores.append(2 * precision * recall / (precision + recall) if shared else 0.0)
    return scores


def random_text(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 12, random.integers(2, 15))
    return [random.integers(7, 40, size).tolist() for size in sizes]


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("target_length", [12, 40])
def test_source_and_target_restore_the_text(select, target_length):
    shards = random_shards(60)
    made = denoising("pegasus", shards, length=60, select=select, target_length=target_length)
    ids = []
    for source, target in rows(made, 1):
        masks = source.count(made.tokenizer.mask)
        assert masks >= 1
        assert masks < len(source) - 1 or len(target) == 2
        text = [token for token in source[:-1] if token != made.tokenizer.mask]
        assert text == sorted(text)
        assert target[:-1] == sorted(target[:-1])
        row = sorted(text + target[:-1])
        assert row == [*range(row[0], row[0] + len(row))]
        ids += row
    assert ids == texts(shards)


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.8])
def test_the_number_of_sentences_is_exact(select, rate):
    for count in range(2, 12):
        shards = numbered_shards([[4] * count] * 5)
        made = denoising("pegasus", shards, select=select, gap_rate=rate)
        for source, target in rows(made):
            expected = min(count_masked(count, rate), count - 1)
            assert source.count(made.tokenizer.mask) == expected
            assert len(target) == 4 * expected + 1
            assert len(source) == 4 * (count - expected) + expected + 1


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_the_definition(seed):
    sentences = random_text(seed)
    lengths = np.array([len(sentence) for sentence in sentences])
    scores = rouge(np.concatenate(sentences).astype(np.uint16), lengths)
    assert np.allclose(scores, plain_rouge(sentences), atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_the_rouge_score_package(seed):
    scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="pip install rouge_score")
    scorer = scorers.RougeScorer(["rouge1"], use_stemmer=False)
    sentences = random_text(seed)
    words = [" ".join(f"w{token}" for token in sentence) for sentence in sentences]
    expected = [
        scorer.score(" ".join(words[:n] + words[n + 1 :]), words[n])["rouge1"].fmeasure
        for n in range(len(words))
    ]
    lengths = np.array([len(sentence) for sentence in sentences])
    assert np.allclose(rouge(np.concatenate(sentences), lengths), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_the_sentences_most_like_the_rest_are_chosen(seed):
    sentences = random_text(seed)
    made = objective("pegasus", FakeShards([sentences]), NamedTokenizer(100), length=256)
    [(source, target)] = rows(made)
    count = min(count_masked(len(sentences), 0.3), len(sentences) - 1)
    scores = plain_rouge(sentences)
    # Of equal ones the first.
    best = sorted(sorted(range(len(sentences)), key=lambda n: (-round(scores[n], 9), n))[:count])
    assert target[:-1] == [token for number in best for token in sentences[number]]
    mask = [made.tokenizer.mask]
    parts = [mask if number in best else text for number, text in enumerate(sentences)]
    assert source[:-1] == [token for part in parts for token in part]


def test_lead_hides_the_first_sentences():
    made = denoising("pegasus", numbered_shards([[3, 4, 5, 6, 2, 2, 2]] * 4), select="lead")
    for source, target in rows(made):
        assert source[:2] == [made.tokenizer.mask] * 2
        assert len(target) == 8
        assert source[2] == target[-2] + 1


def test_d29_any_sentence_can_be_chosen_also_the_last():
    made = denoising("pegasus", numbered_shards([[3, 4, 5, 6, 2]]), select="random", gap_rate=0.2)
    found: Counter[int] = Counter()
    for epoch in range(400):
        [(source, _)] = rows(made, epoch)
        place = source.index(made.tokenizer.mask)
        found[[0, 3, 7, 12, 18].index(place)] += 1
    assert set(found) == {*range(5)}
    assert min(found.values()) > 50


@pytest.mark.parametrize("select", SELECTIONS)
def test_d29_no_example_comes_twice_in_an_epoch(select):
    made = denoising("pegasus", random_shards(60), length=40, select=select)
    pairs = [(tuple(source), tuple(target)) for source, target in rows(made)]
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("select", SELECTIONS)
def test_a_single_sentence_is_cut_at_a_random_place(select):
    made = denoising("pegasus", numbered_shards([[20]]), select=select)
    sizes = set()
    for epoch in range(60):
        [(source, target)] = rows(made, epoch)
        assert len(source) + len(target) == 20 + 3
        assert source.count(made.tokenizer.mask) == 1
        sizes.add(len(target) - 1)
    assert sizes <= {*range(1, 20)}
    assert len(sizes) > 12


def test_a_single_token_is_written_after_a_mask():
    made = denoising("pegasus", numbered_shards([[1]]))
    assert rows(made) == [([made.tokenizer.mask, made.tokenizer.eos], [7, made.tokenizer.eos])]


def test_what_has_no_room_in_the_target_stays_in_the_source():
    shards = numbered_shards([[9, 6, 2, 30]])
    made = denoising("pegasus", shards, select="lead", gap_rate=0.6, target_length=12)
    [(source, target)] = rows(made)
    # The second sentence does not fit behind the first; the last is cut into 11, 11 and 8.
    assert target[:-1] == [*range(7, 16), 22, 23]
    assert source.count(made.tokenizer.mask) == 2


@pytest.mark.parametrize("select", SELECTIONS)
def test_targets_can_be_as_short_as_a_token(select):
    made = denoising("pegasus", random_shards(10), select=select, target_length=2)
    assert {len(target) for _, target in rows(made)} == {2}
    with pytest.raises(ConfigError, match="target_length must be at least 2"):
        denoising("pegasus", random_shards(10), select=select, target_length=1)


def test_noise_changes_the_choice_between_epochs():
    sentences = [[8, 9, 10 + n, 30 + n] for n in range(8)]
    for noise, least, most in ((0.0, 1, 1), (0.9, 5, 40)):
        made = objective("pegasus", FakeShards([sentences]), NamedTokenizer(100), score_noise=noise)
        targets = {tuple(rows(made, epoch)[0][1]) for epoch in range(40)}
        assert least <= len(targets) <= most


def test_the_mask_of_a_sentence():
    shards = numbered_shards([[3, 4]])
    published = NamedTokenizer(shards.tokens, **{"<mask_1>": 8})
    assert 8 in objective("pegasus", shards, published).make(0, 0)["ids"]
    own = NamedTokenizer(shards.tokens, **{"<gap>": 9})
    assert 9 in objective("pegasus", shards, own, mask_token="<gap>").make(0, 0)["ids"]
    with pytest.raises(DataError, match=r"`<gop>` of model.objective.mask_token is not in the voc"):
        objective("pegasus", shards, own, mask_token="<gop>")
    without = NamedTokenizer(shards.tokens, mask=-1)
    with pytest.raises(DataError, match="needs the special token `mask`"):
        objective("pegasus", shards, without)
