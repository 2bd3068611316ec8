"""Beam search with strings that stop texts: as a search that reads every continuation does it."""

from typing import Any

import pytest

from tencentpretrain.config import decode
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.frame import Frame
from tencentpretrain.generate.generator import Generator
from tencentpretrain.model import ModelConfig
from tests.helpers.saved_models import numbered_words, word_tokenizer
from tests.helpers.writing import VOCABULARY, built, pair_config, whole_scores, writer_config

MODEL = built(writer_config())
PROMPTS = ["w7 w8 w9", "w20", "w30 w31 w32 w33 w34"]
STEPS = 6
STOPS = {
    "one token": ["w13", "w29", "w40"],
    "across tokens": ["1 w", "2 w3", "8 w"],
    "most tokens": ["1", "2", "3"],
    "all words": ["w"],
    "nothing": ["nowhere"],
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return word_tokenizer(tmp_path_factory.mktemp("words"), numbered_words(VOCABULARY))


def searched(
    generator: Generator, words: Any, prompt: str, stop: list[str], decoding: Decoding
) -> tuple[float, list[int], str]:
    """Score, ids and text of the best text, by the rules and nothing else."""
    beams, penalty = decoding.beams, decoding.length_penalty
    begun = words.encode(prompt)

    def said(ids: list[int]) -> str:
        return str(words.decode(begun + ids))[len(words.decode(begun)) :]

    def is_stopped(ids: list[int]) -> bool:
        return any(string in said(ids) for string in stop)

    open_texts: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, STEPS + 1):
        every = [
            (score + value, [*ids, token])
            for score, ids in open_texts
            for token, value in enumerate(whole_scores(MODEL, begun + ids).log_softmax(-1).tolist())
        ]
        every.sort(reverse=True)
        ended = [length == STEPS or is_stopped(ids) for _, ids in every]
        divisor = length**penalty
        finished += [
            (score / divisor, ids)
            for (score, ids), is_end in zip(every[:beams], ended, strict=False)
            if is_end
        ]
        finished = sorted(finished, reverse=True)[:beams]
        open_texts = [t for t, is_end in zip(every, ended, strict=True) if not is_end][:beams]
        if len(finished) == beams:
            longest = STEPS if decoding.early_stopping == "never" and penalty > 0 else length
            best = open_texts[0][0] / longest**penalty if open_texts else -float("inf")
            if decoding.early_stopping is True or best <= finished[-1][0]:
                break
    score, ids = finished[0]
    text = said(ids)
    places = [text.find(string) for string in stop if string in text]
    return score, ids, text[: min(places)] if places else text


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    "keys",
    [
        {"beams": 3},
        {"beams": 2, "length_penalty": 0.0, "early_stopping": True},
        {"beams": 4, "length_penalty": 2.0},
        {"beams": 3, "length_penalty": 4.0, "early_stopping": "never"},
    ],
)
def test_texts_are_those_of_reading_every_continuation(
    words: Any, stop: str, keys: dict[str, Any]
) -> None:
    generator = Generator(MODEL, words, Frame())
    decoding = decode(Decoding, {"max_new_tokens": STEPS, "stop": STOPS[stop], **keys})
    found = generator.generate(PROMPTS, decoding)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        score, ids, text = searched(generator, words, prompt, STOPS[stop], decoding)
        assert list(answer.ids) == ids
        assert answer.text == text
        assert answer.score == pytest.approx(score, rel=1e-4)
        whole = words.decode(words.encode(prompt) + ids)[len(prompt) :]
        assert answer.finish == ("length" if text == whole else "stop")


@pytest.mark.parametrize("config", [writer_config(), pair_config()], ids=["causal", "pair"])
def test_cached_equals_uncached_in_any_batch(words: Any, config: ModelConfig) -> None:
    model, frame = built(config), Frame(start=() if config.decoder is None else (2,))
    keys = {"max_new_tokens": 8, "stop": ["1 w", "2 w3", "w40", "w13"], "beams": 3}
    decoding = decode(Decoding, keys | {"repetition_penalty": 1.5})
    cached, whole = (Generator(model, words, frame, is_cached=c) for c in (True, False))
    together = cached.generate(PROMPTS, decoding)
    alone = [cached.generate([prompt], decoding)[0] for prompt in PROMPTS]
    uncached = whole.generate(PROMPTS, decoding)
    for answers in (alone, uncached):
        found = [(a.text, a.ids, a.finish) for a in answers]
        assert found == [(a.text, a.ids, a.finish) for a in together]


def test_strings_of_a_template_end_the_texts_of_a_search(words: Any) -> None:
    decoding = decode(Decoding, {"max_new_tokens": STEPS, "beams": 3})
    [free] = Generator(MODEL, words, Frame()).generate(PROMPTS[:1], decoding)
    stop = free.text[4:9]
    [ended] = Generator(MODEL, words, Frame(stop=(stop,))).generate(PROMPTS[:1], decoding)
    asked = decode(Decoding, {"max_new_tokens": STEPS, "beams": 3, "stop": [stop]})
    assert [ended] == Generator(MODEL, words, Frame()).generate(PROMPTS[:1], asked)
    assert stop not in ended.text
