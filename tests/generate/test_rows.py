"""Rows that grow: what is kept of earlier positions and what stands beside change nothing."""

from typing import Any

import pytest
import torch

from tencentpretrain.generate import engine
from tencentpretrain.generate.choice import Chooser
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.engine import continue_rows
from tencentpretrain.generate.rows import GrowingRows, RowOptions, TargetRows, read_sources
from tencentpretrain.generate.written import Written
from tests.helpers.writing import (
    MODELS,
    built,
    ids_of,
    pair_config,
    random_prompts,
    whole_scores,
    write,
    writer_config,
)

UNCACHED = RowOptions(is_cached=False)
PAIRS: dict[str, dict[str, Any]] = {
    "learned": {},
    "sinusoidal": {"parts": {"word": {}, "sinusoidal": {}}},
    "relative": {"decoder": {"relative": {"buckets": 8, "distance": 6}}},
    "rotary": {"decoder": {"rotary": {}, "kv_heads": 2}},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"repetition_penalty": 1.5},
    "drawn": {"temperature": 1.0, "top_k": 20},
    "beams": {"beams": 3, "repetition_penalty": 1.5},
}


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_scores_are_those_of_reading_everything_anew(kind: str, is_cached: bool) -> None:
    model, prompts = built(writer_config(kind)), random_prompts((6, 1, 4))
    following = torch.tensor(random_prompts((5, 5, 5), seed=2)).T
    options = RowOptions(has_prefix=kind == "prefix", is_cached=is_cached)
    with torch.inference_mode():
        rows = GrowingRows(model, model.target["lm"], prompts, 9, options)
        found = [rows.start(), *(rows.append(tokens) for tokens in following)]
        for number, prompt in enumerate(prompts):
            prefix = len(prompt) if kind == "prefix" else None
            for step, scores in enumerate(found):
                ids = prompt + following[:step, number].tolist()
                expected = whole_scores(model, ids, prefix)
                torch.testing.assert_close(scores[number], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("search", ["greedy", "beams"])
@pytest.mark.parametrize("kind", MODELS)
def test_cached_equals_uncached(kind: str, search: str) -> None:
    model, prompts, keys = built(writer_config(kind)), random_prompts((3, 7)), SEARCHES[search]
    cached = write(model, prompts, 8, ends=(3, 9), **keys)
    uncached = write(model, prompts, 8, ends=(3, 9), options=UNCACHED, **keys)
    assert ids_of(cached) == ids_of(uncached)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", PAIRS)
def test_decoders_write_the_same_with_and_without_a_cache(kind: str, search: str) -> None:
    model, sources = built(pair_config(**PAIRS[kind])), random_prompts((3, 7, 1))
    keys = {"start": (2,), "ends": (3, 9), **SEARCHES[search]}
    texts = ids_of(write(model, sources, **keys))
    assert texts == ids_of(write(model, sources, options=UNCACHED, **keys))
    alone = [ids_of(write(model, [s], numbers=[n], **keys))[0] for n, s in enumerate(sources)]
    assert texts == alone
    assert len({tuple(ids) for ids in texts}) == 3


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", ["learned", "rotary", "relative", "alibi", "lstm", "gated_cnn"])
def test_a_text_does_not_depend_on_the_other_prompts(kind: str, search: str) -> None:
    model, prompts = built(writer_config(kind)), random_prompts((5, 2, 8, 1, 3))
    keys = SEARCHES[search] | {"ends": tuple(range(0, 50, 4))}
    together = ids_of(write(model, prompts, **keys))
    for number, prompt in enumerate(prompts):
        assert ids_of(write(model, [prompt], numbers=[number], **keys)) == [together[number]]
    others = write(model, [prompts[2], [7] * 9, prompts[0]], numbers=[2, 9, 0], **keys)
    assert [others[2].ids, others[0].ids] == [together[0], together[2]]
    assert len({len(ids) for ids in together}) > 1, "rows must end at different times"


def test_equal_prompts_are_drawn_apart_and_seeds_change_them() -> None:
    model, prompt = built(writer_config()), random_prompts((4,))[0]
    texts = ids_of(write(model, [prompt] * 3, temperature=1.0))
    assert len({tuple(ids) for ids in texts}) == 3
    assert ids_of(write(model, [prompt] * 3, temperature=1.0)) == texts
    assert ids_of(write(model, [prompt] * 3, temperature=1.0, seed=1)) != texts


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", ["learned", "lstm", "pair"])
def test_how_often_the_host_looks_changes_nothing(
    kind: str, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(pair_config() if kind == "pair" else writer_config(kind))
    prompts = random_prompts((5, 2, 8, 1))
    keys = {"ends": tuple(range(8)), "start": (2,), **SEARCHES[search]}
    texts = ids_of(write(model, prompts, 10, **keys))
    monkeypatch.setattr(engine, "HOST", ())
    assert ids_of(write(model, prompts, 10, **keys)) == texts


def test_rows_that_have_ended_are_computed_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = built(writer_config()), random_prompts((4, 4, 4, 4))
    limits, counts = (2, 9, 3, 2), []
    written = [Written(limit) for limit in limits]
    append = GrowingRows.append

    def counted(self: GrowingRows, tokens: torch.Tensor) -> torch.Tensor:
        counts.append(len(tokens))
        return append(self, tokens)

    monkeypatch.setattr(GrowingRows, "append", counted)
    with torch.inference_mode():
        rows = GrowingRows(model, model.target["lm"], prompts, 9, RowOptions())
        continue_rows(rows, written, Chooser(Decoding(), None, None), 1, None)
    assert counts == [4, 2, 1, 1, 1, 1, 1, 1]
    longest = ids_of(write(model, prompts, 9))
    assert ids_of(written) == [ids[:n] for ids, n in zip(longest, limits, strict=True)]


def test_d78_each_position_is_read_once_and_nothing_is_kept_for_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, prompts = built(writer_config()), random_prompts((6, 6))
    read = []
    monkeypatch.setattr(
        model.encoder,
        "forward",
        lambda hidden, *rest, forward=model.encoder.forward: (
            read.append((hidden.shape[1], hidden.requires_grad)) or forward(hidden, *rest)
        ),
    )
    assert [len(row.ids) for row in write(model, prompts, 8)] == [8, 8]
    assert read == [(6, False)] + [(1, False)] * 7


def test_d67_and_d55_padding_is_told_by_length_and_segments_need_not_be_given() -> None:
    parts = {"word": {}, "position": {"length": 24}, "segment": {}}
    model = built(pair_config(parts))
    sources = [[5, 0, 9, 0], [5, 0, 9, 0, 7, 8]]  # 0 is a token like others
    texts = ids_of(write(model, sources, start=(2,)))
    assert texts[0] == ids_of(write(model, sources[:1], start=(2,)))[0]
    with torch.inference_mode():
        options = RowOptions()
        both, one = (
            TargetRows(
                model, model.target["lm"], read_sources(model, rows), (2,), 3, options
            ).start()[0]
            for rows in (sources, [[5, 9]])
        )
    assert not torch.allclose(both, one), "the entry with id 0 must be read"


def test_what_is_written_may_have_a_segment_of_its_own() -> None:
    model, prompts = built(writer_config("segments")), random_prompts((4, 2))
    plain = ids_of(write(model, prompts))
    marked = [RowOptions(segment=1, is_cached=cached) for cached in (True, False)]
    texts = [ids_of(write(model, prompts, options=options)) for options in marked]
    assert texts[0] == texts[1]
    # The first token follows from the prompt alone.
    assert [ids[0] for ids in texts[0]] == [ids[0] for ids in plain]
    assert texts[0] != plain


def test_a_prefix_model_may_read_its_prompts_causally() -> None:
    model, prompts = built(writer_config("prefix")), random_prompts((7, 3))
    causal = write(model, prompts, options=RowOptions(has_prefix=False))
    assert ids_of(causal) != ids_of(write(model, prompts))
    first = [int(whole_scores(model, ids).argmax()) for ids in prompts]
    assert [row.ids[0] for row in causal] == first


def test_entries_beyond_the_vocabulary_are_never_written() -> None:
    model, prompts = built(writer_config()), random_prompts((4, 2))
    for keys in ({}, {"beams": 2}, {"temperature": 3.0}, {"repetition_penalty": 2.0}):
        prompts = [[token % 6 for token in ids] for ids in prompts]
        texts = ids_of(write(model, prompts, options=RowOptions(vocabulary=6), **keys))
        assert max(token for ids in texts for token in ids) == 5
