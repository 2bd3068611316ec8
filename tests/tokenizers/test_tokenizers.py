"""Ids equal those of trusted code, and what every kind of tokenizer promises."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from tencentpretrain.config import decode
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import (
    DESCRIPTION,
    TOKENIZERS,
    Tokenizer,
    build_tokenizer,
    load_tokenizer,
)
from tencentpretrain.tokenizers.simple import SpaceTokenizer

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build(name: str, vocab: Path, **keys: object) -> Tokenizer:
    cls = TOKENIZERS.config_class(name)
    return build_tokenizer(decode(cls, {"name": name, "vocab": str(vocab), **keys}))


def entries(folder: Path, *names: str) -> Path:
    path = folder / "vocab.txt"
    path.write_text("".join(f"{name}\n" for name in (*BERT, *names)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def vocabs(shared_data: Path) -> Path:
    return shared_data / "vocab"


def lines(shared_data: Path, name: str) -> list[str]:
    return (shared_data / "corpora" / name).read_text(encoding="utf-8").split("\n")


@pytest.fixture(scope="session")
def chinese(vocabs: Path) -> Tokenizer:
    return build("wordpiece", vocabs / "google_zh_vocab.txt")


@pytest.fixture(scope="session")
def gpt2(vocabs: Path) -> Tokenizer:
    return build("bpe", vocabs / "gpt2_vocab.json", merges=str(vocabs / "gpt2_merges.txt"))


@pytest.fixture(scope="session")
def pieces(vocabs: Path) -> Tokenizer:
    return build("sentencepiece", vocabs / "clue_zh_sentencepiece.model")


@pytest.mark.parametrize(
    ("vocab", "corpus", "lowercase"),
    [
        ("google_zh_vocab.txt", "clue_zh.txt", True),
        ("google_uncased_en_vocab.txt", "wikitext2_en.txt", True),
        ("google_uncased_en_vocab.txt", "tinyshakespeare_en.txt", False),
    ],
)
def test_wordpiece_ids_equal_the_library(
    shared_data: Path, vocabs: Path, vocab: str, corpus: str, lowercase: bool
) -> None:
    content = (vocabs / vocab).read_bytes().decode()
    ids = {entry: number for number, entry in enumerate(content.split("\n")[:-1])}
    reference = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    reference.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    reference.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ours = build("wordpiece", vocabs / vocab, lowercase=lowercase)
    texts = lines(shared_data, corpus)[:20000]
    expected = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
    assert ours.encode_batch(texts) == expected


@pytest.mark.parametrize("corpus", ["wikitext2_en.txt", "clue_zh.txt"])
def test_bpe_ids_equal_the_library(
    shared_data: Path, vocabs: Path, gpt2: Tokenizer, corpus: str
) -> None:
    files = str(vocabs / "gpt2_vocab.json"), str(vocabs / "gpt2_merges.txt")
    reference = tokenizers.ByteLevelBPETokenizer(*files)
    texts = lines(shared_data, corpus)[:6000]
    assert gpt2.encode_batch(texts) == [e.ids for e in reference.encode_batch(texts)]


def test_ids_equal_transformers_on_a_sample(
    shared_data: Path, vocabs: Path, chinese: Tokenizer, gpt2: Tokenizer
) -> None:
    from transformers import BertTokenizer, GPT2Tokenizer

    bert = BertTokenizer(str(vocabs / "google_zh_vocab.txt"))
    other = GPT2Tokenizer(str(vocabs / "gpt2_vocab.json"), str(vocabs / "gpt2_merges.txt"))
    sample = [
        "Ünïcode ÄÖ ǅ ﬁ, it's 25,000\t元!",
        "  two  spaces\n\nand lines\r\n",
        "😀🏽 ไทย 한국어",
    ]
    sample += lines(shared_data, "clue_zh.txt")[:200] + lines(shared_data, "wikitext2_en.txt")[:200]
    for text in sample:
        assert chinese.encode(text) == bert.encode(text, add_special_tokens=False)
        assert gpt2.encode(text) == other.encode(text)


def test_d54_sentencepiece_ids_equal_the_library(
    shared_data: Path, vocabs: Path, pieces: Tokenizer
) -> None:
    path = str(vocabs / "clue_zh_sentencepiece.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=path)
    texts = lines(shared_data, "clue_zh.txt")[:2000]
    assert pieces.encode_batch(texts) == reference.encode(texts)
    assert (pieces.pad, pieces.unk, pieces.cls, pieces.sep, pieces.mask) == (0, 1, 2, 3, 4)


def test_d48_xlmr_has_its_own_numbering(tmp_path: Path) -> None:
    """As fairseq numbers: four special tokens, then the pieces of the model one later, <mask>."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["公交 ok 集团", "ok 公交 兰州"] * 20),
        model_writer=written,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path / "v.model"
    path.write_bytes(written.getvalue())
    ours = build("sentencepiece", path, ids="xlmr")
    plain = build("sentencepiece", path)
    assert [ours.token(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert ours.vocab_size == plain.vocab_size + 2
    assert ours.mask == ours.vocab_size - 1
    assert (ours.pad, ours.unk, ours.cls, ours.sep) == (1, 3, 0, 2)
    text = "兰州 公交集团 ok 😀"
    shifted = [3 if number == plain.unk else number + 1 for number in plain.encode(text)]
    assert ours.encode(text) == shifted
    assert ours.encode_ends([text])[0][0] == shifted
    assert ours.decode([0, *ours.encode("公交 ok"), 1]) == "公交 ok"


KINDS = ["wordpiece", "bpe", "sentencepiece", "character", "space", "json"]


@pytest.fixture(params=KINDS)
def any_kind(request: pytest.FixtureRequest, tmp_path: Path, vocabs: Path) -> Tokenizer:
    kind = request.param
    if kind == "wordpiece":
        return build(kind, vocabs / "google_zh_vocab.txt")
    if kind == "bpe":
        return build(kind, vocabs / "gpt2_vocab.json", merges=str(vocabs / "gpt2_merges.txt"))
    if kind == "sentencepiece":
        return build(kind, vocabs / "clue_zh_sentencepiece.model")
    if kind == "json":
        request.getfixturevalue("chinese").save(tmp_path / "saved")
        return build(kind, tmp_path / "saved" / "tokenizer.json")
    return build(kind, entries(tmp_path, *"我爱北京to", "我爱", "to", "ken"))


TEXTS = ["我爱 北京 token", "", " ", "to to\tto", "ﬁ é 😀"]


def test_what_every_kind_promises(tmp_path: Path, any_kind: Tokenizer) -> None:
    encoded = any_kind.encode_batch(TEXTS)
    assert encoded == [any_kind.encode(text) for text in TEXTS]
    flat, lengths = any_kind.encode_flat(TEXTS)
    assert flat.tolist() == [number for ids in encoded for number in ids]
    assert lengths.tolist() == list(map(len, encoded))
    with_ends = any_kind.encode_ends(TEXTS)
    assert [ids for ids, _ in with_ends] == encoded
    for text, (ids, ends) in zip(TEXTS, with_ends, strict=True):
        assert len(ids) == len(ends)
        assert ends == sorted(ends)
        assert all(0 <= end <= len(text) for end in ends)
    assert any_kind.continues.shape == (any_kind.vocab_size,)
    assert not any_kind.continues[sorted(any_kind.special_ids)].any()
    words = any_kind.encode_words(["我爱", "token", "", "to"])
    assert len(words) == 4
    assert all(words)
    assert any_kind.encode_flat([])[0].tolist() == []

    any_kind.save(tmp_path / "copy")
    for copy in (load_tokenizer(tmp_path / "copy"), pickle.loads(pickle.dumps(any_kind))):
        assert copy.encode_batch(TEXTS) == encoded
        assert copy.fingerprint == any_kind.fingerprint
        assert copy.special_ids == any_kind.special_ids
        assert np.array_equal(copy.continues, any_kind.continues)


def test_special_tokens_in_a_text_are_plain_text(any_kind: Tokenizer) -> None:
    if any_kind.kind == "sentencepiece":
        pytest.skip("a model may define symbols that stay whole")
    for name in filter(None, any_kind.specials.values()):
        ids = any_kind.encode(f"x{name}x")
        assert not (any_kind.special_ids - {any_kind.unk}) & set(ids)


def test_pieces_that_continue_words(chinese: Tokenizer, gpt2: Tokenizer, pieces: Tokenizer) -> None:
    def found(tokenizer: Tokenizer, text: str) -> list[int]:
        return tokenizer.continues[tokenizer.encode(text)].astype(int).tolist()

    ids = chinese.encode("我 tokenizing it")
    assert found(chinese, "我 tokenizing it") == [chinese.token(i)[:2] == "##" for i in ids]
    assert 0 < sum(found(chinese, "我 tokenizing it")) < len(ids) - 1
    assert [gpt2.token(i) for i in gpt2.encode(" unbelievable it\n")] == [
        "Ġunbelievable",
        "Ġit",
        "Ċ",
    ]
    assert found(gpt2, " antidisestablishment it\n")[-2:] == [0, 0]
    assert found(gpt2, " antidisestablishment it\n")[1] == 1
    assert found(pieces, "hello world")[0] == 0
    assert pieces.continues[pieces.id("北京")]


def test_decoding(chinese: Tokenizer, gpt2: Tokenizer, pieces: Tokenizer) -> None:
    text = "Hello, 世界!\n😀 "
    assert gpt2.decode(gpt2.encode(text)) == text
    ids = [chinese.cls, *chinese.encode("hello, tokens!"), chinese.sep]
    assert chinese.decode(np.array(ids)) == "hello, tokens!"
    assert chinese.decode(ids, skip_special=False).startswith("[CLS] hello")
    masked = [*pieces.encode("我爱"), pieces.mask, *pieces.encode("北京")]
    assert pieces.decode(masked) == "我爱 北京"
    assert "[MASK]" in pieces.decode(masked, skip_special=False)


def test_tokens_and_ids(chinese: Tokenizer) -> None:
    assert chinese.id("[MASK]") == chinese.mask == 103
    assert chinese.token(103) == "[MASK]"
    assert chinese.id("no such entry") is None
    with pytest.raises(IndexError, match="21128"):
        chinese.token(21128)


def test_characters_keep_spaces_where_the_vocabulary_has_them(tmp_path: Path) -> None:
    without = build("character", entries(tmp_path, "a", "b"))
    assert without.decode(without.encode("a b\nz a"), skip_special=False) == "ab[UNK]a"
    with_spaces = build("character", entries(tmp_path, "a", "b", " ", "\\n"))
    assert with_spaces.decode(with_spaces.encode("a b\n a")) == "a b\n a"


def test_lowercase_is_an_option(tmp_path: Path) -> None:
    path = entries(tmp_path, "a", "A")
    for kind in ("character", "space", "wordpiece"):
        assert build(kind, path, lowercase=False).encode("A a") == [6, 5]
        assert build(kind, path, lowercase=True).encode("A a") == [5, 5]


def test_a_special_token_can_be_named(tmp_path: Path) -> None:
    path = entries(tmp_path, "<mask>", "<s>")
    tokenizer = build("wordpiece", path, specials={"mask": "<mask>", "bos": "<s>"})
    assert (tokenizer.mask, tokenizer.bos, tokenizer.cls) == (5, 6, 2)
    with pytest.raises(DataError, match=r"`<x>` is to be the `mask` token.*tokenizer\.specials"):
        build("wordpiece", path, specials={"mask": "<x>"})


def test_a_special_token_that_is_absent_is_none_and_named(gpt2: Tokenizer) -> None:
    assert gpt2.mask is None
    assert gpt2.require("eos") == gpt2.eos == 50256
    with pytest.raises(DataError, match=r"no `mask` token \(names tried: `<mask>`, `\[MASK\]`\)"):
        gpt2.require("mask")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"[UNK]\na\nb\na\n", "'a' twice, in lines 2 and 4"),
        (b"[UNK]\n\nb\n", "empty line 2"),
        (b"[UNK]\nb\n\xff\n", "not UTF-8: line 3, byte 8"),
        (b"a\nb\n", r"no `\[UNK\]`"),
    ],
)
@pytest.mark.parametrize("kind", ["wordpiece", "character", "space"])
def test_bad_vocabularies(tmp_path: Path, kind: str, content: bytes | None, message: str) -> None:
    path = tmp_path / "v.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        build(kind, path)


def test_a_vocabulary_may_come_from_windows(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(b"\xef\xbb\xbf[UNK]\r\na\r\n\xe2\x80\xa8\r\n")
    tokenizer = build("wordpiece", path)
    assert tokenizer.vocab_size == 3
    assert tokenizer.encode("a") == [1]


def byte_vocabulary() -> dict[str, int]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {symbol: number for number, symbol in enumerate(alphabet)}


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ({"a": 0, "b": 1}, "a b", "lacks 254 of the 256 byte symbols"),
        ([], "a b", "must be one JSON object"),
        ({"a": "x"}, "a b", "must be one JSON object"),
        ({"a": 0, "b": 0}, "a b", "one id to several"),
        (byte_vocabulary(), "#version: 0.2\na b", "line 2 .* needs the piece `ab`"),
        (byte_vocabulary(), "abc", "line 1 .* is not two pieces"),
    ],
)
def test_bad_bpe_files(tmp_path: Path, vocabulary: object, merges: str, message: str) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(DataError, match=message):
        build("bpe", tmp_path)


@pytest.mark.parametrize("kind", ["json", "sentencepiece"])
@pytest.mark.parametrize("content", [b"", b'{"a": 1}', b"nonsense \xff"])
def test_bad_files_of_other_kinds(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match="file"):
        build(kind, path)


def test_a_tokenizer_json_is_not_cut_or_filled_up(tmp_path: Path, chinese: Tokenizer) -> None:
    chinese.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    assert build("json", path).encode("我爱北京") == chinese.encode("我爱北京")


def test_a_config_without_its_name_will_do(tmp_path: Path) -> None:
    config = SpaceTokenizer.Config(vocab=entries(tmp_path, "a"))
    tokenizer = SpaceTokenizer.from_config(config)
    tokenizer.save(tmp_path / "t")
    assert load_tokenizer(tmp_path / "t").kind == "space"


def test_what_is_no_saved_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no saved tokenizer"):
        load_tokenizer(tmp_path / "missing")
    tokenizer = build("space", entries(tmp_path, "a"))
    tokenizer.save(tmp_path / "t")
    path = tmp_path / "t" / DESCRIPTION
    whole = json.loads(path.read_text())
    for change, message in (
        ({"kind": "spice"}, "there is no tokenizer `spice`; did you mean `space`"),
        ({"kind": "evil.code:Tokenizer"}, r"plugins=\[evil\]"),
        ({"format": 9}, "has format 9"),
        ({"specials": None}, "is damaged"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(DataError, match=message):
            load_tokenizer(tmp_path / "t")
    path.write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        load_tokenizer(tmp_path / "t")
    path.write_text(json.dumps(whole))
    (tmp_path / "t" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path / "t")


def test_added_tokens_of_a_json_file_are_not_forged_by_a_text(tmp_path: Path) -> None:
    rust = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.add_special_tokens(["<|im_end|>"])
    path = tmp_path / "tokenizer.json"
    rust.save(str(path))
    tokenizer = build("json", path)
    assert tokenizer.id("<|im_end|>") == 2
    assert tokenizer.encode("a <|im_end|> a") == [1, 0, 1]
