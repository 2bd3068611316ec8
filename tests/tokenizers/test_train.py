"""Vocabularies learned from a corpus: usable at once, complete, and the same every time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.tokenizers.train import BuildVocabConfig, run_build_vocab


def train(output: Path, corpus: Path, kind: str, size: int, **keys: object) -> None:
    options = keys.pop("options", {})
    assert isinstance(options, dict)
    data = {
        "tokenizer": {"name": kind, **options},
        "corpus": {"path": str(corpus)},
        "output": str(output),
        "vocab_size": size,
        **keys,
    }
    assert run_build_vocab(decode(BuildVocabConfig, data)) == 0


def opened(kind: str, folder: Path, **keys: object) -> Tokenizer:
    from tests.tokenizers.test_tokenizers import build

    return build(kind, folder, **keys)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    text = "the cat sat on the mat and the cats sat on mats while other cats were sitting"
    words = text.split()
    lines = [" ".join(words[i % 5 : i % 11 + 5]) for i in range(300)] + ["北京大学在北京"] * 20
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("kind", "size"),
    [("wordpiece", 60), ("bpe", 300), ("sentencepiece", 60), ("character", 40), ("space", 22)],
)
def test_each_kind_writes_its_corpus(tmp_path: Path, corpus: Path, kind: str, size: int) -> None:
    train(tmp_path / "v", corpus, kind, size)
    tokenizer = opened(kind, tmp_path / "v")
    assert tokenizer.vocab_size <= size
    ids = tokenizer.encode("the cats sat on the mat 北京")
    if kind == "space":  # where a Chinese sentence is one word
        ids = ids[:-1]
    assert tokenizer.unk not in ids
    decoded = tokenizer.decode(ids).replace(" ", "")
    assert decoded == "thecatssatonthemat" + ("" if kind == "space" else "北京")
    assert None not in (tokenizer.pad, tokenizer.unk, tokenizer.mask, tokenizer.cls, tokenizer.eos)


def test_frequent_words_become_pieces(tmp_path: Path, corpus: Path) -> None:
    train(tmp_path / "v", corpus, "wordpiece", 120)
    tokenizer = opened("wordpiece", tmp_path / "v")
    assert [tokenizer.token(i) for i in tokenizer.encode("the cat")] == ["the", "cat"]


def test_rare_characters_leave_room_for_pieces(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    rare = "".join(chr(0x4E00 + number) for number in range(500))
    path.write_text("abab abab " * 50 + rare, encoding="utf-8")
    train(tmp_path / "v", path, "wordpiece", 45)
    tokenizer = opened("wordpiece", tmp_path / "v")
    assert tokenizer.vocab_size <= 45
    assert len(tokenizer.encode("abab")) == 1


def test_d77_no_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("a\nb\n\nc\nd", encoding="utf-8")
    train(tmp_path / "v", path, "character", 99, min_frequency=1)
    found = (tmp_path / "v" / "vocab.txt").read_text().split()
    assert set(found[5:]) == set("abcd")


def test_characters_with_white_space(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("to be\nor not", encoding="utf-8")
    data = {
        "tokenizer": {"name": "character", "keep_spaces": True},
        "corpus": {"path": str(path), "format": "text"},
        "output": str(tmp_path / "v"),
        "min_frequency": 1,
    }
    run_build_vocab(decode(BuildVocabConfig, data))
    tokenizer = opened("character", tmp_path / "v")
    assert tokenizer.decode(tokenizer.encode("not to\nbe")) == "not to\nbe"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_the_same_corpus_gives_the_same_bytes(tmp_path: Path, corpus: Path, kind: str) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.tokenizers.test_train import train;"
        f"train(Path(sys.argv[1]), Path({str(corpus)!r}), {kind!r}, 300)"
    )
    root = str(Path(__file__).resolve().parents[2])
    train(tmp_path / "0", corpus, kind, 300)
    # The library's hash tables are seeded anew by each process.
    command = [sys.executable, "-c", code, str(tmp_path / "1")]
    subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": root}, check=True)
    for file in (tmp_path / "0").iterdir():
        assert file.read_bytes() == (tmp_path / "1" / file.name).read_bytes()


def test_what_cannot_be_learned_is_said(tmp_path: Path, corpus: Path) -> None:
    for kind, given in (("bpe", 262), ("wordpiece", 5), ("character", 5), ("space", 5)):
        with pytest.raises(DataError, match=f"vocab_size must be above {given}"):
            train(tmp_path / "v", corpus, kind, given)
    with pytest.raises(DataError, match=r"SentencePiece cannot learn 9 entries: .*required_chars"):
        train(tmp_path / "v", corpus, "sentencepiece", 9)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(DataError, match="no text"):
        train(tmp_path / "v", empty, "wordpiece", 100)
    assert not (tmp_path / "v").exists()
    with pytest.raises(ConfigError, match="must be a directory"):
        train(tmp_path / "vocab.txt", corpus, "wordpiece", 100)
    with pytest.raises(ConfigError, match="did you mean `wordpiece`"):
        train(tmp_path / "v", corpus, "wordpece", 100)


def test_a_vocabulary_is_replaced_only_if_asked(tmp_path: Path, corpus: Path) -> None:
    train(tmp_path / "v", corpus, "wordpiece", 40)
    with pytest.raises(DataError, match="overwrite=true"):
        train(tmp_path / "v", corpus, "wordpiece", 50)
    train(tmp_path / "v", corpus, "wordpiece", 50, overwrite=True)
    assert opened("wordpiece", tmp_path / "v").vocab_size == 50
    assert sorted(file.name for file in tmp_path.iterdir()) == ["corpus.txt", "v"]
