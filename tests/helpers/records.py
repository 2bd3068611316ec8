"""Small corpora of pairs, labelled texts and conversations, preprocessed to shards on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tencentpretrain.config import decode
from tencentpretrain.data.objectives import OBJECTIVES
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
from tencentpretrain.data.shards import ShardSet, open_shards

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MARKERS = ["<|im_start|>", "<|im_end|>", "user", "assistant", "system"]
WORDS = [f"w{number}" for number in range(60)]


def vocabulary(folder: Path, name: str = "vocab", entries: Iterable[str] = ()) -> Path:
    """A file of special tokens, chat markers and the words w0, w1, ... or other `entries`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.txt"
    path.write_text("\n".join([*SPECIAL, *(entries or [*MARKERS, *WORDS])]) + "\n", "utf-8")
    return path


def record_config(
    folder: Path, content: str, corpus: str | bytes | Path, name: str = "shards", **keys: Any
) -> PreprocessConfig:
    """Keys of preprocess.py; those of the corpus begin with `corpus_`.

    A text is written to a file, `keys["file"]`, by whose extension the format is known.
    """
    file = folder / keys.pop("file", f"{name}.txt")
    if isinstance(corpus, Path):
        file = corpus
    else:
        file.write_bytes(corpus.encode() if isinstance(corpus, str) else corpus)
    options = {k.removeprefix("corpus_"): keys.pop(k) for k in [*keys] if k.startswith("corpus_")}
    tokenizer = {"name": "space", "vocab": str(vocabulary(folder))}
    content_keys = {
        "tokenizer": tokenizer,
        "corpus": {"path": str(file), "content": content, **options},
        "output": str(folder / name),
        "workers": 1,
    }
    return decode(PreprocessConfig, content_keys | keys)


def record_shards(folder: Path, content: str, corpus: str | bytes | Path, **keys: Any) -> ShardSet:
    """What preprocess.py makes of `corpus`."""
    config = record_config(folder, content, corpus, **keys)
    assert run_preprocess(config) == 0
    return open_shards(config.output)


def record_objective(
    name: str, shards: ShardSet, documents: Any = None, seed: int = 3, **values: Any
) -> Any:
    """The objective `name` over stored records."""
    config = decode(OBJECTIVES.config_class(name), {"name": name, **values})
    return OBJECTIVES.build(config, shards, shards.tokenizer(), seed, documents)


def words(shards: ShardSet, ids: Iterable[int]) -> str:
    """Tokens by name, with spaces between."""
    return " ".join(shards.tokenizer().token(int(number)) for number in ids)


def json_lines(records: Iterable[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def some_pairs(sizes: Iterable[tuple[int, int]]) -> str:
    """Lines of a source and a target with so many words, counted up from w0."""
    lines, number = [], 0
    for source, target in sizes:
        texts = []
        for size in (source, target):
            texts.append(" ".join(WORDS[(number + i) % len(WORDS)] for i in range(size)))
            number += size
        lines.append("\t".join(texts))
    return "\n".join(lines) + "\n"


def some_chats(sizes: Iterable[tuple[int, int]]) -> str:
    """JSON lines with a prompt and an answer of so many words."""
    pairs = (line.split("\t") for line in some_pairs(sizes).splitlines())
    return json_lines({"prompt": prompt, "answer": answer} for prompt, answer in pairs)
