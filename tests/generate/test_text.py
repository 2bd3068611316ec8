"""Text that grows token by token: whole characters, and an exact end."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from tencentpretrain.config import decode
from tencentpretrain.generate.text import HALF, GrowingText, text_behind
from tencentpretrain.tokenizers.base import TOKENIZERS, Tokenizer, build_tokenizer
from tests.helpers.saved_models import word_tokenizer

KINDS = ("bpe", "wordpiece", "chinese", "sentencepiece", "character", "space")


def build(name: str, vocab: Path, **keys: str) -> Tokenizer:
    config = {"name": name, "vocab": str(vocab), **keys}
    return build_tokenizer(decode(TOKENIZERS.config_class(name), config))


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A token for each byte."""
    folder = tmp_path_factory.mktemp("bytes")
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return build("bpe", folder / "vocab.json")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, shared_data: Path) -> Tokenizer:
    vocabs = shared_data / "vocab"
    names = {
        "bpe": "gpt2_vocab.json",
        "wordpiece": "google_uncased_en_vocab.txt",
        "chinese": "google_zh_vocab.txt",
        "sentencepiece": "clue_zh_sentencepiece.model",
        "character": "google_zh_vocab.txt",
        "space": "google_uncased_en_vocab.txt",
    }
    keys = {"merges": str(vocabs / "gpt2_merges.txt")} if request.param == "bpe" else {}
    name = "wordpiece" if request.param == "chinese" else request.param
    return build(name, vocabs / names[request.param], **keys)


def test_pieces_make_up_the_text_of_all_tokens(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    for _ in range(60):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(1, 12))]
        growing, seen = GrowingText(tokenizer), ""
        for token in ids:
            growing.push(token)
            assert growing.text.startswith(seen)
            assert not growing.text.endswith(HALF)
            seen = growing.text
        growing.finish()
        assert growing.text.startswith(seen)
        assert growing.text == tokenizer.decode(ids) == text_behind(tokenizer, (), ids)


def test_a_text_goes_on_with_that_of_its_prompt(tokenizer: Tokenizer, shared_data: Path) -> None:
    file = "clue_zh.txt" if tokenizer.id("中") is not None else "wikitext2_en.txt"
    lines = (shared_data / "corpora" / file).read_text(encoding="utf-8").splitlines()
    draw = random.Random(0)
    for ids in tokenizer.encode_batch([line for line in lines[:200] if line.strip()][:60]):
        cut = draw.randrange(1, len(ids) + 1)
        prompt, rest = ids[:cut], ids[cut:]
        if tokenizer.decode(prompt).endswith(HALF):
            continue
        growing = GrowingText(tokenizer, prompt)
        for token in rest:
            growing.push(token)
        growing.finish()
        assert tokenizer.decode(prompt) + growing.text == tokenizer.decode(ids)
        assert text_behind(tokenizer, prompt, rest) == growing.text


def test_half_a_character_is_never_shown(bytewise: Tokenizer) -> None:
    text = "a 世界 é😀!"
    growing, shown = GrowingText(bytewise), []
    for token in bytewise.encode(text):
        growing.push(token)
        shown.append(growing.text)
    assert shown[-1] == text
    assert {len(step) for step in shown} == set(range(1, len(text) + 1))
    assert all(text.startswith(step) for step in shown)


def test_bytes_that_are_no_character_are_shown_at_the_end(bytewise: Tokenizer) -> None:
    growing = GrowingText(bytewise)
    for token in bytewise.encode("ab界")[:-1]:
        growing.push(token)
    assert growing.text == "ab"
    growing.finish()
    assert growing.text == f"ab{HALF}"
    growing = GrowingText(bytewise)
    for token in [*bytewise.encode("界")[:-1], *bytewise.encode("b")]:
        growing.push(token)
    assert growing.text == f"{HALF}b"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["wo th"], "one t"),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["three!"], "one two three"),
        ("ababac", ["abac"], "ab"),
        ("x世界 y", ["界 "], "x世"),
        ("\n\nA", ["\n\n"], ""),
    ],
)
def test_a_string_stops_the_text_across_tokens(
    bytewise: Tokenizer, text: str, stop: list[str], expected: str
) -> None:
    growing, ids = GrowingText(bytewise, stop=stop), bytewise.encode(text)
    pushed = 0
    while not growing.is_stopped and pushed < len(ids):
        growing.push(ids[pushed])
        pushed += 1
    growing.finish()
    assert growing.text == expected
    assert growing.is_stopped == (expected != text)
    # No token too many: without the last one there was nothing to stop at.
    found = [string for string in stop if string in bytewise.decode(ids[:pushed])]
    assert bool(found) == growing.is_stopped
    assert not any(string in bytewise.decode(ids[: pushed - 1]) for string in stop)


def test_one_token_may_hold_more_than_the_string(tmp_path: Path) -> None:
    words = word_tokenizer(tmp_path, ["stopgap", "go", "##es"])
    growing = GrowingText(words, stop=["pg", "oes"])
    for word in ("go", "stopgap"):
        number = words.id(word)
        assert number is not None
        growing.push(number)
    assert growing.text == "go sto"
    assert growing.is_stopped


def test_what_a_later_token_could_cut_off_is_not_certain(bytewise: Tokenizer) -> None:
    growing, shown = GrowingText(bytewise, stop=["</a>", "\n\n"]), []
    for token in bytewise.encode("x</b>\ny</a>z"):
        growing.push(token)
        shown.append(growing.certain)
    assert shown[:8] == ["x", "x", "x", "x</b", "x</b>", "x</b>", "x</b>\ny", "x</b>\ny"]
    assert shown[-1] == growing.text == "x</b>\ny"


def test_special_tokens_say_nothing(tmp_path: Path) -> None:
    words = word_tokenizer(tmp_path, ["a", "b"])
    growing = GrowingText(words, prompt=[2], stop=["a b"])
    for token in (5, 3, 6):
        growing.push(token)
    assert growing.text == ""
    assert growing.is_stopped
