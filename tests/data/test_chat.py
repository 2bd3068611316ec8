"""What stands around the messages of a conversation, and what of it is learned."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers

from tencentpretrain.config import decode
from tencentpretrain.data.chat import ChatMl, Plain
from tencentpretrain.data.preprocess import run_preprocess
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import TOKENIZERS, Tokenizer, build_tokenizer
from tests.helpers.records import (
    json_lines,
    record_config,
    record_shards,
    vocabulary,
    words,
)

TALK = [("system", "w0"), ("user", "w1 w2"), ("assistant", "w3 w4 w5"), ("user", "w6")]
TALK += [("assistant", "w7")]
MESSAGES = {"messages": [{"role": role, "content": text} for role, text in TALK]}


def learned(shards, number: int = 0) -> str:
    ids = shards.read(number)
    return words(shards, ids[shards.column("supervised", number)])


def test_chatml_learns_answers_and_their_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = record_shards(tmp_path, "chat", json_lines([MESSAGES]))
    rendered = [f"<|im_start|> {role} {text} <|im_end|>" for role, text in TALK]
    assert words(shards, shards.read(0)) == " ".join(rendered)
    assert learned(shards) == "w3 w4 w5 <|im_end|> w7 <|im_end|>"
    turns = np.cumsum([len(turn.split()) for turn in rendered])
    assert shards.sentence_ends(0).tolist() == turns.tolist()
    assert not caplog.messages


def test_plain_learns_answers_and_eos(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "chat", json_lines([MESSAGES]), corpus_template="plain")
    text = "[CLS] w0 w1 w2 w3 w4 w5 [SEP] w6 w7 [SEP]"
    assert words(shards, shards.read(0)) == text
    assert learned(shards) == "w3 w4 w5 [SEP] w7 [SEP]"
    assert shards.sentence_ends(0).tolist() == [2, 4, 8, 9, 11]


def test_prompt_and_answer_are_user_and_assistant(tmp_path: Path) -> None:
    rows = [{"prompt": "w0", "answer": "w1"}, {"messages": MESSAGES["messages"][3:]}]
    shards = record_shards(tmp_path, "chat", json_lines(rows))
    assert words(shards, shards.read(0)) == (
        "<|im_start|> user w0 <|im_end|> <|im_start|> assistant w1 <|im_end|>"
    )
    assert learned(shards, 0) == "w1 <|im_end|>"
    assert learned(shards, 1) == "w7 <|im_end|>"


def test_markers_that_the_vocabulary_lacks_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vocab = vocabulary(tmp_path, "other", ["user", "assistant", "<|im_start|>", "w0"])
    config = record_config(
        tmp_path,
        "chat",
        json_lines([{"prompt": "w0", "answer": "w0"}] * 3),
        tokenizer={"name": "space", "vocab": str(vocab)},
    )
    with caplog.at_level(logging.WARNING):
        run_preprocess(config)
    (message,) = caplog.messages
    assert "no token <|im_end|>," in message


def byte_tokenizer(folder: Path) -> Tokenizer:
    """Bytes, with the markers as single tokens beside them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = RustTokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    path = folder / "tokenizer.json"
    path.write_text(rust.to_str(), encoding="utf-8")
    return build_tokenizer(
        decode(TOKENIZERS.config_class("json"), {"name": "json", "vocab": str(path)})
    )


def test_chatml_equals_the_whole_text_tokenised_at_once(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    roles, texts = ("system", "user", "assistant"), ("Be\nbrief.", "1 + 1?", "2\n")
    ids = [
        number
        for turn in ChatMl(tokenizer).turns(roles, texts)
        for part in (turn.before, tokenizer.encode(turn.text), turn.end, turn.behind)
        for number in part
    ]
    text = "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in zip(roles, texts, strict=True)
    )
    reference = RustTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ids == reference.encode(text).ids


def test_plain_needs_an_end(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs the special token `eos`"):
        Plain(byte_tokenizer(tmp_path))


@pytest.mark.parametrize("template", ["chatml", "plain"])
def test_real_answers_are_learned_word_for_word(
    shared_data: Path, tmp_path: Path, template: str
) -> None:
    path = shared_data / "instruction" / "gsm8k_test.jsonl"
    tokenizer = {
        "name": "bpe",
        "vocab": str(shared_data / "vocab" / "gpt2_vocab.json"),
        "merges": str(shared_data / "vocab" / "gpt2_merges.txt"),
    }
    fields = {"prompt": "question"}
    keys = {"corpus_template": template, "corpus_fields": fields, "tokenizer": tokenizer}
    some = path.read_text(encoding="utf-8").splitlines()[:200]
    shards = record_shards(tmp_path, "chat", "\n".join(some), **keys)
    rows = [json.loads(line) for line in some]
    assert shards.documents == len(rows)
    made = shards.tokenizer()
    end = "<|im_end|>" if template == "chatml" else "<|endoftext|>"
    for number in range(len(rows)):
        ids = shards.read(number)
        chosen = ids[shards.column("supervised", number)]
        assert made.decode(chosen, skip_special=False) == rows[number]["answer"] + end
        whole = made.decode(ids, skip_special=False)
        assert rows[number]["question"] in whole
