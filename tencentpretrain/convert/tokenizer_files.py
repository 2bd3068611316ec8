"""Tokenizers in the files that `transformers` keeps beside a model, and ours in such files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, processors

from tencentpretrain.config import ComponentConfig, decode
from tencentpretrain.convert.weights import read_json
from tencentpretrain.errors import CheckpointError
from tencentpretrain.tokenizers.base import (
    DESCRIPTION,
    ROLES,
    TOKENIZERS,
    Role,
    Tokenizer,
    build_tokenizer,
)
from tencentpretrain.tokenizers.fast import SAVED
from tencentpretrain.tokenizers.vocabulary import JSON_VOCABULARY, MERGES, MODEL, VOCABULARY

CONFIG: Final = "tokenizer_config.json"
SPECIALS: Final = ("special_tokens_map.json", CONFIG)
XLMR_MODEL: Final = "sentencepiece.bpe.model"
LLAMA_MODEL: Final = "tokenizer.model"
OTHER_MODELS: Final = ("spiece.model", "spm.model")
"""SentencePiece models of families that prepare text or number pieces in their own code."""
BYTE_LEVEL: Final = ("gpt2", "roberta", "bart")
"""Families whose `vocab.json` is that of GPT-2's kind; others split words in their own code."""


def read_tokenizer(folder: Path, model_type: str) -> Tokenizer | None:
    """The tokenizer in a folder of `transformers`; None where there is none.

    Raises:
        CheckpointError: if there is one whose files do not say all that it does.
        DataError: if a file is damaged.
    """
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if (folder / SAVED).is_file():
        return _build("json", folder / SAVED, folder)
    if (folder / VOCABULARY).is_file():
        options = {
            "lowercase": config.get("do_lower_case", True),
            "strip_accents": config.get("strip_accents"),
            "split_chinese": config.get("tokenize_chinese_chars", True),
        }
        return _build("wordpiece", folder / VOCABULARY, folder, **options)
    if (folder / JSON_VOCABULARY).is_file() and model_type in BYTE_LEVEL:
        options = {"merges": str(folder / MERGES)}
        options["add_prefix_space"] = config.get("add_prefix_space", False)
        return _build("bpe", folder / JSON_VOCABULARY, folder, **options)
    if (folder / XLMR_MODEL).is_file() and (folder / JSON_VOCABULARY).is_file():
        numbers = {"numbers": str(folder / JSON_VOCABULARY)}
        is_lower = bool(config.get("do_lower_case"))
        return _build("sentencepiece", folder / XLMR_MODEL, folder, **numbers, lowercase=is_lower)
    if (folder / XLMR_MODEL).is_file():
        return _build("sentencepiece", folder / XLMR_MODEL, folder, ids="xlmr")
    if (folder / LLAMA_MODEL).is_file():
        return _build("sentencepiece", folder / LLAMA_MODEL, folder)
    found = [name for name in (JSON_VOCABULARY, *OTHER_MODELS) if (folder / name).is_file()]
    if found:
        raise CheckpointError(
            f"`{folder / found[0]}` is only a part of a tokenizer; make a {SAVED} of it: "
            f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
        )
    return None


def _build(kind: str, vocab: Path, folder: Path, **options: Any) -> Tokenizer:
    """A tokenizer of ours with the special tokens that the folder names."""
    cls: type[ComponentConfig] = TOKENIZERS.config_class(kind)
    plain = {"name": kind, "vocab": str(vocab), **options}
    built = build_tokenizer(decode(cls, plain, "tokenizer"))
    named = {role: name for role, name in _specials(folder).items() if built.id(name) is not None}
    if all(built.specials[role] == name for role, name in named.items()):
        return built
    return build_tokenizer(decode(cls, {**plain, "specials": named}, "tokenizer"))


def _specials(folder: Path) -> dict[Role, str]:
    """Names of special tokens by role, as far as the files tell."""
    found: dict[Role, str] = {}
    for file in SPECIALS:
        content = read_json(folder / file) if (folder / file).is_file() else {}
        for role in ROLES:
            value = content.get(f"{role}_token")
            name = value.get("content") if isinstance(value, dict) else value
            if isinstance(name, str):
                found[role] = name
    return found


def tokenizer_files(
    tokenizer: Tokenizer,
    *,
    is_framed: bool,
    has_segments: bool,
    length: int | None,
    hears: bool = False,
) -> dict[str, bytes] | None:
    """Files by name from which `transformers` makes the same tokenizer; None if it cannot.

    Args:
        tokenizer: Ours.
        is_framed: Whether special tokens stand around texts.
        has_segments: Whether the model tells the texts of a pair apart.
        length: Greatest number of tokens of a row; None for any.
        hears: Whether it writes what a model of speech hears.
    """
    saved = _saved(tokenizer)
    specials = {role: name for role, name in tokenizer.specials.items() if name is not None}
    if is_framed and specials.get("bos") == specials.get("cls"):
        specials = {role: name for role, name in specials.items() if role not in ("bos", "eos")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": [name for name in inputs if has_segments or "type" not in name],
        **({} if length is None else {"model_max_length": length}),
        **{f"{role}_token": name for role, name in specials.items()},
    }
    if SAVED in saved:
        content = saved[SAVED].decode()
        if is_framed:
            content = _framed(content, tokenizer, specials, has_segments)
        return {SAVED: content.encode(), CONFIG: _json(config)}
    description = json.loads(saved[DESCRIPTION])
    if hears:
        numbers = {tokenizer.token(number): number for number in range(tokenizer.vocab_size)}
        config["tokenizer_class"] = "Speech2TextTokenizer"
        config["do_lower_case"] = bool(description.get("lowercase"))
        vocabulary = saved.get(JSON_VOCABULARY) or _json(numbers)
        return {XLMR_MODEL: saved[MODEL], JSON_VOCABULARY: vocabulary, CONFIG: _json(config)}
    if description.get("ids") == "xlmr":
        config["tokenizer_class"] = "XLMRobertaTokenizer"
        return {XLMR_MODEL: saved[MODEL], CONFIG: _json(config)}
    if tokenizer.id("<0x00>") is not None:
        config |= {"tokenizer_class": "LlamaTokenizer", "legacy": False}
        return {LLAMA_MODEL: saved[MODEL], CONFIG: _json(config)}
    return None


def _saved(tokenizer: Tokenizer) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _framed(
    content: str, tokenizer: Tokenizer, specials: Mapping[Role, str], has_segments: bool
) -> str:
    """A tokenizer.json that knows its special tokens and puts them around texts.

    One that does so already stays as it is.
    """
    rust = tokenizers.Tokenizer.from_str(content)
    if rust.post_processor is not None:
        return content
    rust.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in specials.values()]
    )
    cls, sep = specials.get("cls"), specials.get("sep")
    if cls is not None and sep is not None:
        second = 1 if has_segments else 0
        rust.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:{second} {sep}:{second}",
            special_tokens=[(cls, tokenizer.require("cls")), (sep, tokenizer.require("sep"))],
        )
    text: str = rust.to_str(pretty=True)
    return text


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
