"""Tokens are chosen as published: the same as by `transformers` or by direct computation."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.generate.choice import (
    STEPS,
    Chooser,
    Seen,
    draw,
    keep_likely,
    keep_nucleus,
    keep_top,
    penalise,
    uniform_draws,
    warp,
)
from tencentpretrain.generate.decoding import Decoding

transformers = pytest.importorskip("transformers")

VOCABULARY = 40


@pytest.fixture
def scores() -> Tensor:
    """Scores [B, V] with ties and tokens that are excluded already."""
    values = (torch.randn(16, VOCABULARY) * 4).round() / 2
    values[::3, :5] = -torch.inf
    return values


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda s: keep_top(s, 1), lambda: transformers.TopKLogitsWarper(1)),
        (lambda s: keep_top(s, 7), lambda: transformers.TopKLogitsWarper(7)),
        (lambda s: keep_top(s, 99), lambda: transformers.TopKLogitsWarper(99)),
        (lambda s: keep_nucleus(s, 0.01), lambda: transformers.TopPLogitsWarper(0.01)),
        (lambda s: keep_nucleus(s, 0.7), lambda: transformers.TopPLogitsWarper(0.7)),
        (lambda s: keep_nucleus(s, 0.999), lambda: transformers.TopPLogitsWarper(0.999)),
        (lambda s: keep_likely(s, 0.05), lambda: transformers.MinPLogitsWarper(0.05)),
        (lambda s: keep_likely(s, 1.0), lambda: transformers.MinPLogitsWarper(1.0)),
    ],
)
def test_processors_are_those_of_transformers(
    scores: Tensor, ours: Callable[[Tensor], Tensor], theirs: Callable[[], Callable[..., Tensor]]
) -> None:
    ids = torch.zeros(len(scores), 1, dtype=torch.int64)
    torch.testing.assert_close(ours(scores), theirs()(ids, scores), rtol=0, atol=0)
    assert torch.isfinite(ours(scores)).any(-1).all()


def test_keys_apply_in_the_published_order(scores: Tensor) -> None:
    keys = {"temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_p": 0.1}
    processors = [
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(12),
        transformers.TopPLogitsWarper(0.9),
        transformers.MinPLogitsWarper(0.1),
    ]
    expected = scores
    for processor in processors:
        expected = processor(torch.zeros(len(scores), 1, dtype=torch.int64), expected)
    torch.testing.assert_close(warp(scores, decode(Decoding, keys)), expected)


def test_the_penalty_is_that_of_transformers_and_counts_prompts(scores: Tensor) -> None:
    prompts = [[number % VOCABULARY, 7, 7, number % 5] for number in range(len(scores))]
    seen = Seen(prompts, VOCABULARY, scores.device)
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    expected = processor(torch.tensor(prompts), scores)
    torch.testing.assert_close(penalise(scores, seen.table, 1.7), expected)
    tokens = torch.arange(len(scores)) + 20
    seen.add(tokens)
    expected = processor(torch.cat([torch.tensor(prompts), tokens[:, None]], 1), scores)
    torch.testing.assert_close(penalise(scores, seen.table, 1.7), expected)
    seen.select(torch.tensor([3]))
    torch.testing.assert_close(penalise(scores[3:4], seen.table, 1.7), expected[3:4])


def test_a_draw_inverts_the_distribution_function() -> None:
    scores = torch.tensor([0.5, -torch.inf, 1.5, 0.0, -torch.inf]).repeat(1000, 1)
    uniform = torch.arange(1000, dtype=torch.float64) / 1000
    sums = np.cumsum(torch.softmax(scores[0].double(), -1).numpy())
    expected = [int((sums <= point * sums[-1]).sum()) for point in uniform.tolist()]
    assert draw(scores, uniform).tolist() == expected
    assert set(expected) == {0, 2, 3}


@pytest.mark.parametrize("uniform", [0.0, 1 - 1 / STEPS])
def test_the_outermost_draws_are_tokens_that_are_allowed(uniform: float) -> None:
    scores = torch.randn(500, 5000)
    scores[:, :9] = scores[:, -9:] = -torch.inf
    tokens = draw(scores, torch.full((500,), uniform, dtype=torch.float64))
    assert torch.isfinite(scores.gather(1, tokens[:, None])).all()


def test_draws_follow_the_distribution() -> None:
    """Pearson's statistic of 20,000 draws, below its 99.9 % point for 9 degrees of freedom."""
    scores, count = torch.randn(10), 20000
    uniform = uniform_draws(5, range(count // 10), 10).flatten()
    tokens = draw(scores.repeat(count, 1), uniform)
    expected = scores.double().softmax(-1) * count
    statistic = ((tokens.bincount(minlength=10) - expected) ** 2 / expected).sum()
    assert float(statistic) < 27.88


def test_draws_depend_on_seed_row_and_step_alone() -> None:
    draws = uniform_draws(3, [0, 1, 2], 8)
    assert draws.dtype == torch.float64
    assert torch.equal(uniform_draws(3, [2, 0], 5), draws[[2, 0], :5])
    assert not torch.equal(uniform_draws(4, [0, 1, 2], 8), draws)
    assert len(draws.unique()) == 24
    assert float(draws.max()) < 1


def test_greedy_takes_the_likeliest_and_draws_the_others() -> None:
    scores = torch.tensor([[0.0, 2.0, 1.0]])
    assert Chooser(Decoding(), None, None)(scores).tolist() == [1]
    chooser = Chooser(decode(Decoding, {"temperature": 1}), None, torch.tensor([[0.01, 0.99]]))
    assert [chooser(scores).tolist() for _ in range(2)] == [[0], [2]]
    penalised = decode(Decoding, {"repetition_penalty": 10.0})
    chooser = Chooser(penalised, Seen([[0]], 3, scores.device), None)
    assert [chooser(scores).tolist() for _ in range(3)] == [[1], [2], [1]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"top_p": 0.9}, "top_p needs a temperature above 0"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1, "top_p": 0}, "top_p"),
        ({"beams": 2, "temperature": 0.5}, "beams=2 and temperature=0.5 exclude each other"),
        ({"stop": [""]}, "must not hold an empty string"),
        ({"length_penalty": 2.0}, "length_penalty needs a beam search"),
        ({"early_stopping": "never"}, "early_stopping needs a beam search"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_contradictions_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(Decoding, keys)
