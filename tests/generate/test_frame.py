"""Prompts stand where they stood in training, and texts begin and end as there."""

from pathlib import Path
from typing import Any

import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.chat import ChatMl, Plain
from tencentpretrain.data.objectives import OBJECTIVES
from tencentpretrain.data.shard_writer import ShardWriter
from tencentpretrain.data.shards import ShardSet, open_shards
from tencentpretrain.generate.chat import chat_frame, chat_prompt
from tencentpretrain.generate.frame import Frame, find_frame
from tencentpretrain.model import ModelConfig
from tests.helpers.records import json_lines, record_objective, record_shards
from tests.helpers.saved_models import SPECIALS, word_tokenizer
from tests.helpers.writing import pair_config, writer_config

WORDS = [f"w{number}" for number in range(30)]
SENTINELS = [f"<extra_id_{number}>" for number in range(20)]
PAD, UNK, CLS, SEP, MASK = range(5)


def trained(name: str | None, has_decoder: bool, **values: Any) -> ModelConfig:
    """A model that was trained for an objective, as far as that is known."""
    objective = None
    if name is not None:
        objective = decode(OBJECTIVES.config_class(name), {"name": name, **values})
    config = pair_config() if has_decoder else writer_config()
    return config.model_copy(update={"objective": objective})


def text_example(folder: Path, name: str, **values: Any) -> dict[str, list[int]]:
    """An example of a document of three sentences."""
    tokenizer = word_tokenizer(folder, [*WORDS, *SENTINELS])
    with ShardWriter(folder / "shards", tokenizer) as writer:
        ids = tokenizer.encode(" ".join(WORDS[:24]))
        writer.add([ids[:8], ids[8:16], ids[16:]])
    shards = open_shards(folder / "shards")
    config = decode(OBJECTIVES.config_class(name), {"name": name, **values})
    made = OBJECTIVES.build(config, shards, tokenizer, 0).make(0, 0)
    return {key: value.tolist() for key, value in made.items()}


def pairs(folder: Path) -> ShardSet:
    return record_shards(folder, "pair", "w1 w2 w3\tw4 w5\n")


@pytest.mark.parametrize("bos", [False, True])
def test_rows_of_a_language_model(tmp_path: Path, bos: bool) -> None:
    words = word_tokenizer(tmp_path, WORDS)
    frame = find_frame(trained("lm", False, bos=bos), words)
    example = text_example(tmp_path, "lm", bos=bos, length=32)
    start = 0 if bos else None
    row = example["ids"]
    assert frame.around(words.encode("w0 w1")) == ([CLS] if bos else []) + words.encode("w0 w1")
    assert (start is None) or row[row.index(CLS) : row.index(CLS) + 3] == frame.around([5, 6])
    assert SEP in row
    assert frame.ends == (SEP,)
    assert frame.around([]) == ([CLS] if bos else [SEP])
    assert frame.is_continued
    assert not frame.has_prefix


@pytest.mark.parametrize("name", ["t5", "pegasus", "bart"])
def test_rows_of_denoising_pairs(tmp_path: Path, name: str) -> None:
    words = word_tokenizer(tmp_path, [*WORDS, *SENTINELS])
    keys = {"length": 64, "target_length": 64}
    frame = find_frame(trained(name, True, **keys), words)
    example = text_example(tmp_path, name, **keys)
    row, read, labels = example["ids"], example["target_ids"], example["labels"]
    inner = row[len(frame.before) : len(row) - len(frame.behind)]
    assert frame.around(inner) == row
    assert not {CLS, SEP} & {*inner}
    assert tuple(read[: len(frame.start)]) == frame.start
    assert frame.ends == (labels[-1],)
    # What is left to write has nothing in it that is the same in all targets.
    assert not {CLS, SEP, PAD} & {*labels[len(frame.start) - 1 : -1]}
    assert not frame.is_continued


@pytest.mark.parametrize(
    "keys", [{}, {"source_start": "cls", "start": "eos"}, {"start": "pad"}, {"start": "sep"}]
)
def test_rows_of_pairs(tmp_path: Path, keys: dict[str, str]) -> None:
    shards = pairs(tmp_path)
    words = shards.tokenizer()
    example = record_objective("translate", shards, **keys).make(0, 0)
    frame = find_frame(trained("translate", True, **keys), words)
    assert frame.around(words.encode("w1 w2 w3")) == example["ids"].tolist()
    assert frame.start == (example["target_ids"][0],)
    assert frame.ends == (example["labels"][-1],)
    assert frame.around([]) == [*frame.before, SEP]


def test_what_is_written_has_its_own_vocabulary(tmp_path: Path) -> None:
    source = word_tokenizer(tmp_path, WORDS)
    target = word_tokenizer(tmp_path, WORDS, ("[UNK]", "[PAD]", "[MASK]", "[CLS]", "[SEP]"))
    frame = find_frame(trained("translate", True), source, target)
    assert (frame.behind, frame.start, frame.ends) == ((SEP,), (3,), (4,))


@pytest.mark.parametrize(
    "keys", [{}, {"bos": True}, {"supervise_source": True}], ids=["plain", "bos", "supervised"]
)
def test_rows_of_a_prefix_model(tmp_path: Path, keys: dict[str, bool]) -> None:
    shards = pairs(tmp_path)
    words = shards.tokenizer()
    example = record_objective("prefix_lm", shards, length=16, **keys).make(0, 0)
    frame = find_frame(trained("prefix_lm", False, **keys), words)
    prompt = frame.around(words.encode("w1 w2 w3"))
    size = len(prompt)
    assert prompt == example["ids"][:size].tolist()
    assert example["ids"][size:].tolist() == words.encode("w4 w5")
    segments = [0] * size + [frame.segment] * 2
    assert example["segments"].tolist() == segments
    assert example["prefix"].tolist() == [size]
    assert frame.has_prefix == (not keys.get("supervise_source"))
    assert frame.ends == (example["labels"][-1],)


def test_tokens_may_be_chosen(tmp_path: Path) -> None:
    words = word_tokenizer(tmp_path, WORDS)
    frame = find_frame(trained(None, False), words, begin="cls")
    assert frame == Frame((CLS,), alone=(SEP,), ends=(SEP,), has_prefix=True)
    frame = find_frame(trained("lm", False, bos=True), words, begin="none")
    assert frame.before == ()
    frame = find_frame(trained("t5", True), words, begin="cls", start="eos")
    assert (frame.before, frame.start) == ((CLS,), (SEP,))
    assert find_frame(trained(None, True), words).start == (CLS,)


def test_tokens_that_are_missing_are_named(tmp_path: Path) -> None:
    bare = word_tokenizer(tmp_path, WORDS, ("[UNK]", "[MASK]"))
    with pytest.raises(ConfigError, match="begin: the vocabulary has no special token `bos`"):
        find_frame(trained("lm", False, bos=True), bare)
    with pytest.raises(ConfigError, match="start: the vocabulary has no special token `pad`"):
        find_frame(trained("t5", True), bare)
    with pytest.raises(ConfigError, match="start: is required"):
        find_frame(trained(None, True), bare)
    with pytest.raises(ConfigError, match="start: is for models with a decoder"):
        find_frame(trained("lm", False), bare, start="bos")
    assert find_frame(trained("lm", False), bare).around([]) == []


TALK = [("system", "w0"), ("user", "w1 w2"), ("assistant", "w3 w4 w5"), ("user", "w6")]


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_conversations_are_written_as_they_were_learned(tmp_path: Path, name: str) -> None:
    messages = [{"role": role, "content": text} for role, text in (*TALK, ("assistant", "w7"))]
    corpus = json_lines([{"messages": messages}])
    shards = record_shards(tmp_path, "chat", corpus, corpus_template=name)
    words = shards.tokenizer()
    template = {"chatml": ChatMl, "plain": Plain}[name](words)
    roles, texts = zip(*TALK, strict=True)
    prompt, row = chat_prompt(template, words, roles, texts), shards.read(0).tolist()
    answer = row[len(prompt) :]
    assert prompt == row[: len(prompt)]
    assert answer[0] == words.id("w7")
    learned = shards.column("supervised", 0)[len(prompt) :].tolist()
    assert learned[:2] == [True, True]
    frame = chat_frame(template, words)
    assert answer[1] in frame.ends
    assert not frame.is_continued
    assert not frame.stop


def test_an_end_that_is_no_token_stops_as_text(tmp_path: Path) -> None:
    words = word_tokenizer(tmp_path, ["<", "|", "im", "_", "end", ">", "##x"], SPECIALS)
    frame = chat_frame(ChatMl(words), words)
    assert frame.ends == (SEP,)
    assert frame.stop == (words.decode(words.encode("<|im_end|>")),)
