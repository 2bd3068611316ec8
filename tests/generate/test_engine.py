"""Where a text ends, and what a model refuses to read."""

import math

import pytest
import torch

from tencentpretrain.errors import CheckpointError, DataError
from tencentpretrain.generate.engine import Engine
from tests.helpers.models import tiny_model
from tests.helpers.writing import (
    POSITIONS,
    built,
    ids_of,
    pair_config,
    random_prompts,
    whole_scores,
    write,
    writer_config,
)


@pytest.mark.parametrize("keys", [{}, {"temperature": 1.0}, {"beams": 3}])
def test_a_text_ends_with_each_of_the_end_tokens_or_at_its_limit(keys: dict[str, float]) -> None:
    model, prompts = built(writer_config()), random_prompts((5, 2, 8, 3))
    ends = tuple(range(0, 50, 4))
    written = write(model, prompts, 6, ends, **keys)
    assert {row.finish for row in written} == {"end", "length"}
    for row in written:
        is_end = [token in ends for token in row.ids]
        assert not any(is_end[:-1])
        assert is_end[-1] == (row.finish == "end")
        assert row.finish == "end" or len(row.ids) == 6


def test_a_row_may_end_at_once() -> None:
    model, prompts = built(writer_config()), random_prompts((5, 3))
    first = [row.ids[0] for row in write(model, prompts, 1)]
    written = write(model, prompts, 9, first[:1])
    assert written[0].ids == first[:1]
    assert written[0].finish == "end"
    assert len(written[1].ids) > 1
    for keys in ({}, {"beams": 2, "early_stopping": True}):
        everything = write(model, prompts, 9, range(50), **keys)
        assert [len(row.ids) for row in everything] == [1, 1]
        assert [row.finish for row in everything] == ["end", "end"]


@pytest.mark.parametrize("keys", [{}, {"beams": 2}, {"temperature": 0.9}])
def test_a_position_table_ends_each_row_by_itself(keys: dict[str, float]) -> None:
    model = built(writer_config())
    lengths = (POSITIONS - 4, POSITIONS, 3)
    written = write(model, random_prompts(lengths), 12, **keys)
    # The last token need not be read.
    assert [len(row.ids) for row in written] == [5, 1, 12]
    assert {row.finish for row in written} == {"length"}
    alone = write(model, random_prompts(lengths)[:1], 12, **keys)
    assert alone[0].ids == written[0].ids


def test_a_table_of_the_decoder_bounds_what_is_written_and_not_what_is_read() -> None:
    model = built(pair_config())
    written = write(model, random_prompts((POSITIONS,)), 99, start=(2, 3))
    assert len(written[0].ids) == POSITIONS - 1
    with pytest.raises(DataError, match=f"at most {POSITIONS} positions"):
        write(model, random_prompts((POSITIONS + 1,)), start=(2,))


def test_models_without_a_table_have_no_bound() -> None:
    assert Engine(built(writer_config("rotary"))).limit([1] * 1000, 5000) == 5000


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt 2 is empty, and the vocabulary has no token that begins a text"),
        ([5] * 25, "prompt 2 has 25 tokens, but the model reads at most 24 positions; shorten it"),
    ],
)
def test_prompts_that_cannot_be_read_are_named(prompt: list[int], message: str) -> None:
    model = built(writer_config())
    with pytest.raises(DataError, match=message):
        write(model, [[7], prompt])
    with pytest.raises(DataError, match=message.replace("prompt 2", "prompt 10")):
        write(model, [[7], prompt], numbers=[3, 9])


def test_no_prompts_are_no_texts() -> None:
    assert write(built(writer_config()), []) == []


def test_prompts_of_special_tokens_are_read_like_others() -> None:
    model = built(writer_config())
    texts = ids_of(write(model, [[0], [0, 0, 0], [1, 0]]))
    assert [ids_of(write(model, [p]))[0] for p in ([0], [0, 0, 0], [1, 0])] == texts


def test_models_that_cannot_write_are_refused() -> None:
    with pytest.raises(CheckpointError, match="has not learned to write text: its targets are mlm"):
        Engine(tiny_model("bert/tiny", {"embedding": {"parts": {"position": {"length": 128}}}}))


def test_scores_of_a_search_are_those_of_its_text() -> None:
    """The sum of the log-probabilities of all tokens over the power of their number."""
    model, prompts = built(writer_config()), random_prompts((4, 2))
    for penalty in (0.0, 1.0, 2.0):
        for row, prompt in zip(
            write(model, prompts, 7, range(0, 50, 4), beams=4, length_penalty=penalty),
            prompts,
            strict=True,
        ):
            total, ids = 0.0, list(prompt)
            for token in row.ids:
                scores = whole_scores(model, ids)
                total += float(scores.log_softmax(-1)[token])
                ids.append(token)
            assert row.score is not None
            assert math.isclose(row.score, total / len(row.ids) ** penalty, rel_tol=1e-4)


def test_a_search_with_all_beams_finds_the_likeliest_text() -> None:
    """Beams for every text of two tokens: nothing can be missed."""
    model, prompt = built(writer_config()), random_prompts((4,))[0]
    first = whole_scores(model, prompt).log_softmax(-1)
    sums = torch.stack(
        [
            first[token] + whole_scores(model, [*prompt, token]).log_softmax(-1)
            for token in range(50)
        ]
    )
    best = int(sums.argmax())
    found = write(model, [prompt], 2, beams=50, length_penalty=0.0)
    assert found[0].ids == [best // 50, best % 50]
