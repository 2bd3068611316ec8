"""Tokenizers of `transformers` and ours give the same ids, from its files and in them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer as Rust
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from tencentpretrain.config import decode
from tencentpretrain.convert.tokenizer_files import read_tokenizer, tokenizer_files
from tencentpretrain.errors import CheckpointError
from tencentpretrain.tokenizers.base import TOKENIZERS, Tokenizer, build_tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = [
    "Hello  world, 25,000 of them!",
    "  leading and trailing ",
    "Ünïcode ÄÖ ǅ ﬁ naïve",
    "中文，测试！ＡＢＣ 公交集团",
    "a\tb\nc",
    "😀🏽 ไทย 한국어",
    "",
]
BRACKETS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CORPUS = ["hello world of trailing buses", "公交集团 测试 中文", "leading 25,000 a b c abc"] * 20


def auto(folder: Path, config: Any = None) -> Any:
    """The tokenizer that a user of `transformers` gets from a folder."""
    (config or transformers.BertConfig()).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def same_ids(ours: Tokenizer, theirs: Any) -> None:
    # Before a text that begins with a space SentencePiece puts another one, its own kind of LLaMA
    # in version 5 of `transformers` does not; a tokenizer.json of LLaMA says what is meant.
    is_llama = type(theirs).__name__ == "LlamaTokenizer"
    for text in TEXTS:
        if is_llama and text.startswith(" "):
            continue
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


def spm(**options: Any) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=written,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return written.getvalue()


def llama_model() -> bytes:
    return spm(
        vocab_size=350,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )


def write_json(folder: Path, **content: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("lowercase", [True, False])
def test_vocabulary_of_bert(shared_data: Path, tmp_path: Path, lowercase: bool) -> None:
    shutil.copy(shared_data / "vocab" / "google_zh_vocab.txt", tmp_path / "vocab.txt")
    write_json(tmp_path, tokenizer_class="BertTokenizer", do_lower_case=lowercase)
    ours = read_tokenizer(tmp_path, "bert")
    assert ours is not None
    assert ours.kind == "wordpiece"
    same_ids(ours, auto(tmp_path))


def test_vocabulary_and_merges_of_gpt2(shared_data: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data / "vocab" / f"gpt2_{name}", tmp_path / name)
    ours = read_tokenizer(tmp_path, "gpt2")
    assert ours is not None
    assert ours.kind == "bpe"
    same_ids(ours, auto(tmp_path, transformers.GPT2Config()))
    with pytest.raises(CheckpointError, match="only a part of a tokenizer"):
        read_tokenizer(tmp_path, "qwen2")


def test_sentencepiece_of_xlm_r(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(spm(vocab_size=120))
    write_json(tmp_path, tokenizer_class="XLMRobertaTokenizer")
    ours = read_tokenizer(tmp_path, "xlm-roberta")
    assert ours is not None
    same_ids(ours, auto(tmp_path, transformers.XLMRobertaConfig(vocab_size=ours.vocab_size)))


def test_sentencepiece_of_llama(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(llama_model())
    write_json(tmp_path, tokenizer_class="LlamaTokenizer", legacy=False)
    ours = read_tokenizer(tmp_path, "llama")
    assert ours is not None
    same_ids(ours, auto(tmp_path, transformers.LlamaConfig(vocab_size=ours.vocab_size)))


def unigram() -> Rust:
    """As ALBERT and T5 have it: normalised text, unigram pieces, special tokens around texts."""
    rust = Rust(models.Unigram())
    rust.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<pad>", "</s>", "<unk>", "[MASK]"], unk_token="<unk>"
    )
    rust.train_from_iterator(CORPUS, trainer)
    rust.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return rust


def test_tokenizer_json_is_used_as_it_is(tmp_path: Path) -> None:
    unigram().save(str(tmp_path / "tokenizer.json"))
    write_json(
        tmp_path,
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token="</s>",
        pad_token={"content": "<pad>", "__type": "AddedToken", "lstrip": False, "rstrip": False},
        mask_token="[MASK]",
        cls_token="[ABSENT]",
    )
    ours = read_tokenizer(tmp_path, "t5")
    assert ours is not None
    assert (ours.pad, ours.eos, ours.mask, ours.cls) == (0, 1, 3, None)
    same_ids(ours, auto(tmp_path, transformers.T5Config()))


def test_what_says_too_little_is_refused_with_a_way_out(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path, "t5") is None
    (tmp_path / "spiece.model").write_bytes(spm(vocab_size=120))
    with pytest.raises(CheckpointError, match=r"spiece\.model.*save_pretrained"):
        read_tokenizer(tmp_path, "t5")


def kinds(folder: Path) -> dict[str, Tokenizer]:
    """One of ours of each kind that can be written."""
    entries = [*BRACKETS, *"abcdefghilorstuw中文公交", "##b", "hello", "world", " "]
    (folder / "vocab.txt").write_text("".join(f"{entry}\n" for entry in entries))
    (folder / "bpe").mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet, "he", "hel"]
    content = {entry: number for number, entry in enumerate(vocabulary)}
    (folder / "bpe" / "vocab.json").write_text(json.dumps(content))
    (folder / "bpe" / "merges.txt").write_text("h e\nhe l\n")
    (folder / "xlmr.model").write_bytes(spm(vocab_size=120))
    (folder / "llama.model").write_bytes(llama_model())
    unigram().save(str(folder / "tokenizer.json"))
    chosen: dict[str, dict[str, Any]] = {
        "wordpiece": {"vocab": folder / "vocab.txt"},
        "character": {"vocab": folder / "vocab.txt"},
        "space": {"vocab": folder / "vocab.txt"},
        "bpe": {"vocab": folder / "bpe"},
        "json": {"vocab": folder / "tokenizer.json"},
        "sentencepiece xlmr": {"vocab": folder / "xlmr.model", "ids": "xlmr"},
        "sentencepiece": {"vocab": folder / "llama.model"},
    }
    built = {}
    for kind, options in chosen.items():
        name = kind.partition(" ")[0]
        plain = {"name": name, **options, "vocab": str(options["vocab"])}
        built[kind] = build_tokenizer(decode(TOKENIZERS.config_class(name), plain))
    return built


KINDS = ["wordpiece", "character", "space", "bpe", "json", "sentencepiece xlmr", "sentencepiece"]
CONFIGS = {"sentencepiece": "LlamaConfig", "sentencepiece xlmr": "XLMRobertaConfig"}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_is_written(tmp_path: Path, kind: str) -> None:
    (tmp_path / "ours").mkdir()
    ours = kinds(tmp_path / "ours")[kind]
    files = tokenizer_files(ours, is_framed=True, has_segments=kind == "wordpiece", length=64)
    assert files is not None
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    theirs = auto(folder, getattr(transformers, CONFIGS.get(kind, "BertConfig"))())
    same_ids(ours, theirs)
    assert theirs.model_max_length == 64
    assert theirs.pad_token_id == ours.pad
    if kind in ("wordpiece", "bpe", "sentencepiece xlmr"):
        framed = [ours.require("cls"), *ours.encode(TEXTS[0]), ours.require("sep")]
        assert theirs.encode(TEXTS[0]) == framed
    assert ("token_type_ids" in theirs(TEXTS[0])) == (kind == "wordpiece")
    if kind == "wordpiece":
        types = theirs("hello", "hello world")["token_type_ids"]
        assert types == [0, 0, 0, 1, 1, 1]


def test_what_transformers_cannot_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "s.model"
    path.write_bytes(spm(vocab_size=120))
    plain = {"name": "sentencepiece", "vocab": str(path)}
    ours = build_tokenizer(decode(TOKENIZERS.config_class("sentencepiece"), plain))
    assert tokenizer_files(ours, is_framed=True, has_segments=False, length=None) is None
