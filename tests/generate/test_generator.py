"""Texts from texts: ends, stop strings, pieces, and what a call returns."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.config import decode
from tencentpretrain.errors import DataError
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.frame import Frame, find_frame
from tencentpretrain.generate.generator import Generation, Generator
from tests.helpers.saved_models import numbered_words, word_tokenizer
from tests.helpers.writing import VOCABULARY, built, pair_config, writer_config

PROMPTS = ["w7 w8 w9", "w20", "w30 w31 w32 w33 w34"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return word_tokenizer(tmp_path_factory.mktemp("words"), numbered_words(VOCABULARY))


@pytest.fixture(scope="module")
def generator(words: Any) -> Generator:
    config = writer_config()
    return Generator(built(config), words, find_frame(config, words))


def decoding(**keys: Any) -> Decoding:
    return decode(Decoding, {"max_new_tokens": 10, "repetition_penalty": 1.5, **keys})


def test_texts_are_those_of_their_tokens(generator: Generator, words: Any) -> None:
    for prompt, answer in zip(PROMPTS, generator.generate(PROMPTS, decoding()), strict=True):
        assert prompt + answer.text == words.decode([*words.encode(prompt), *answer.ids])
        assert answer.score is None
        assert answer.finish == "length"
        assert len(answer.ids) == 10


def test_every_prompt_has_its_own_text_in_any_batch(generator: Generator) -> None:
    keys = decoding(temperature=1.0, seed=5)
    together = generator.generate(PROMPTS, keys)
    assert [generator.generate([p], keys, numbers=[n])[0] for n, p in enumerate(PROMPTS)] == (
        together
    )
    assert generator.generate([], keys) == []
    assert generator.generate(PROMPTS, decoding(temperature=1.0, seed=6)) != together


def test_end_tokens_may_be_chosen(generator: Generator, words: Any) -> None:
    free = generator.generate(PROMPTS[:1], decoding(end_tokens=[]))[0]
    last = words.token(free.ids[4])
    assert free.ids.index(free.ids[4]) == 4
    ended = generator.generate(PROMPTS[:1], decoding(end_tokens=["w49", last]))[0]
    assert ended.ids == free.ids[:5]
    assert ended.finish == "end"
    assert ended.text == words.decode(words.encode(PROMPTS[0]) + list(free.ids[:4]))[8:]
    with pytest.raises(DataError, match="`w99` of end_tokens is not in the vocabulary; did you"):
        generator.generate(PROMPTS, decoding(end_tokens=["w99"]))


def test_the_usual_end_token_is_no_part_of_the_text(words: Any) -> None:
    config = writer_config()
    first = Generator(built(config), words, Frame()).generate(PROMPTS, decoding())[1]
    frame = Frame(ends=(first.ids[2], first.ids[1]))
    ended = Generator(built(config), words, frame).generate(PROMPTS, decoding())[1]
    expected = words.decode([*words.encode(PROMPTS[1]), first.ids[0]])[len(PROMPTS[1]) :]
    assert ended == Generation(expected, first.ids[:2], "end")


def test_a_string_stops_a_text_and_no_other(generator: Generator, words: Any) -> None:
    free = generator.generate(PROMPTS, decoding())
    stop = free[0].text[3:9]
    stopped = generator.generate(PROMPTS, decoding(stop=[stop, "nowhere"]))
    assert stopped[0].finish == "stop"
    assert stopped[0].text == free[0].text[:3]
    assert len(stopped[0].ids) < 10
    for before, after in zip(free[1:], stopped[1:], strict=True):
        place = before.text.find(stop)
        assert after.text == (before.text if place < 0 else before.text[:place])


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"stop": ["1 w", "8"]},
        {"beams": 2},
        {"beams": 2, "stop": ["1 w", "8"]},
        {"temperature": 1.0},
    ],
)
def test_pieces_are_the_text(generator: Generator, keys: dict[str, Any]) -> None:
    pieces: dict[int, list[str]] = {0: [], 1: [], 2: []}

    def report(place: int, piece: str) -> None:
        assert piece
        pieces[place].append(piece)

    answers = generator.generate(PROMPTS, decoding(**keys), report=report)
    assert ["".join(pieces[n]) for n in range(3)] == [answer.text for answer in answers]
    assert answers == generator.generate(PROMPTS, decoding(**keys))
    if not keys:
        assert all(len(found) > 5 for found in pieces.values())


def test_an_empty_prompt_begins_a_text(generator: Generator, words: Any) -> None:
    empty, blank, other = generator.generate(["", " ", "w7"], decoding())
    assert empty == blank
    assert empty.text == words.decode(empty.ids)
    assert empty.ids == generator.generate_rows([[words.eos]], decoding())[0].ids != other.ids
    config = writer_config()
    bare = Generator(built(config), words, Frame())
    with pytest.raises(DataError, match="prompt 2 is empty"):
        bare.generate(["w7", ""], decoding())


def test_decoders_write_texts_of_their_own(tmp_path: Path, words: Any) -> None:
    target = word_tokenizer(tmp_path, [f"v{n}" for n in range(55)], ("[UNK]", "[CLS]", "[SEP]"))
    config = pair_config()
    model = built(config, vocabulary=60)
    generator = Generator(model, words, find_frame(config, words, target), target_tokenizer=target)
    answers = generator.generate(PROMPTS, decoding(max_new_tokens=6))
    for answer in answers:
        assert answer.text == target.decode(answer.ids)
        assert "w" not in answer.text
    assert len({answer.ids for answer in answers}) > 1
    assert generator.generate(PROMPTS[1:], decoding(max_new_tokens=6)) == answers[1:]


def test_the_best_text_of_a_search_has_its_score(generator: Generator) -> None:
    answers = generator.generate(PROMPTS, decoding(beams=4))
    assert all(answer.score is not None and answer.score < 0 for answer in answers)


def test_writing_needs_no_dropout_and_leaves_no_gradient(words: Any) -> None:
    config = writer_config()
    config = config.model_copy(
        update={"embedding": config.embedding.model_copy(update={"dropout": 0.5})}
    )
    model = built(config).train()
    generator = Generator(model, words, find_frame(config, words))
    assert generator.generate(PROMPTS, decoding()) == generator.generate(PROMPTS, decoding())
    assert not torch.is_inference_mode_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
