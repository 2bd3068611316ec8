"""A vocabulary, data that a tiny model learns in seconds, and configs to do so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tencentpretrain.config import decode
from tencentpretrain.data.order import generator
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.tasks.base import TASKS, Inputs, Task
from tencentpretrain.tokenizers.base import build_tokenizer
from tencentpretrain.tokenizers.wordpiece import WordPieceTokenizer
from tencentpretrain.train.checkpoint import Checkpoint, CheckpointStore
from tencentpretrain.train.finetune import FinetuneConfig
from tencentpretrain.train.load import state_tensors
from tencentpretrain.yaml_text import dump_yaml

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
COMMON = ("the", "film", "was", "seen", "in", "a", "house", "by", "night", "and", "day")
GOOD = ("good", "great", "lovely")
BAD = ("bad", "dull", "awful")
PEOPLE = ("anna", "boris", "clara")
SURNAMES = ("smith", "jones")
CITIES = ("rome", "paris", "oslo")
PIECES = ("play", "##ing", "##er", "un", "##known")
VOCABULARY = (
    *SPECIALS,
    *COMMON,
    *GOOD,
    *BAD,
    *PEOPLE,
    *SURNAMES,
    *CITIES,
    *PIECES,
    "中",
    "国",
    "人",
)

MODEL: dict[str, Any] = {
    "hidden": 32,
    "embedding": {
        "parts": {"word": {}, "position": {"length": 64}, "segment": {}},
        "dropout": 0.0,
    },
    "encoder": {"layers": 2, "heads": 2, "ffn": 64, "dropout": 0.1},
    "target": {"mlm": {}, "nsp": {}},
    "objective": {"name": "bert", "length": 64},
    "ties": {"target.mlm.output.weight": "embedding.word.weight"},
}


def vocabulary(folder: Path) -> Path:
    """A WordPiece vocabulary in `folder`."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


def tokenizer(folder: Path) -> WordPieceTokenizer:
    config = decode(WordPieceTokenizer.Config, {"name": "wordpiece", "vocab": vocabulary(folder)})
    built = build_tokenizer(config)
    assert isinstance(built, WordPieceTokenizer)
    return built


def inputs(folder: Path, **overrides: Any) -> Inputs:
    """A model and a tokenizer that examples can be made for."""
    return Inputs(decode(ModelConfig, {**MODEL, **overrides}), tokenizer(folder))


def task(name: str, **keys: Any) -> Task[Any, Any]:
    """A task that has learned nothing yet."""
    return TASKS.build(decode(TASKS.config_class(name), {"name": name, **keys}))


def write(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Labels and texts of 3 to 14 words; one word tells the label."""
    rows = []
    for row in range(count):
        draw = generator(seed, row)
        words = draw.choice(COMMON, int(draw.integers(3, 14))).tolist()
        label, telling = ("yes", GOOD) if draw.random() < 0.5 else ("no", BAD)
        words.insert(int(draw.integers(len(words) + 1)), str(draw.choice(telling)))
        rows.append((label, " ".join(words)))
    return rows


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences and their tags: names of people have one or two words, cities one."""
    rows = []
    for row in range(count):
        draw = generator(seed, row)
        words, tags = [], []
        for _ in range(int(draw.integers(2, 8))):
            kind = int(draw.integers(4))
            if kind == 0:
                surname = [str(draw.choice(SURNAMES))] * int(draw.integers(2))
                words += [str(draw.choice(PEOPLE)), *surname]
                tags += ["B-PER", *["I-PER"] * len(surname)]
            elif kind == 1:
                words.append(str(draw.choice(CITIES)))
                tags.append("B-LOC")
            # Something between any two names, so that it is clear where they end.
            words.append(str(draw.choice(COMMON)))
            tags.append("O")
        rows.append((" ".join(words), " ".join(tags)))
    return rows


def classify_files(folder: Path, sizes: Sequence[int] = (96, 48, 48)) -> dict[str, str]:
    """Files to train on, choose by and test on."""
    paths = {}
    for seed, (name, size) in enumerate(zip(("train", "dev", "test"), sizes, strict=True)):
        lines = [f"{label}\t{text}" for label, text in texts(size, seed)]
        paths[name] = str(write(folder / f"{name}.tsv", ["label\ttext_a", *lines]))
    return paths


def ner_files(folder: Path, sizes: Sequence[int] = (96, 32, 32)) -> dict[str, str]:
    paths = {}
    for seed, (name, size) in enumerate(zip(("train", "dev", "test"), sizes, strict=True)):
        lines = ["\t".join(row) for row in sentences(size, seed)]
        paths[name] = str(write(folder / f"{name}.tsv", ["text_a\tlabel", *lines]))
    return paths


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def finetune_data(folder: Path, name: str = "classify", **keys: Any) -> dict[str, Any]:
    """Plain config of a run from scratch in `folder`/run that learns the toy data of a task."""
    files = {"classify": classify_files, "ner": ner_files}[name](folder)
    data = {
        "run_dir": str(folder / "run"),
        "task": {"name": name, "length": 32},
        "data": files,
        "model": MODEL,
        "tokenizer": {"name": "wordpiece", "vocab": str(vocabulary(folder))},
        "trainer": {"steps": 40, "batch_size": 16, "precision": "fp32", "log_every": 10},
        "optim": {"lr": 5e-3},
        "parallel": {"name": "none", "device": "cpu"},
    }
    return merged(data, keys)


def save_run(
    run_dir: Path,
    data: dict[str, Any],
    saved: dict[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    **sections: Any,
) -> Checkpoint:
    """What a run of the model `data` would leave in `run_dir`.

    Args:
        run_dir: Its directory.
        data: Plain config of the model.
        saved: What its config says instead.
        files: Further files.
        sections: Further sections of its config.
    """
    model = build_model(decode(ModelConfig, data), len(VOCABULARY), seed=7)
    tokenizer(run_dir.parent).save(run_dir / "tokenizer")
    parts: dict[str, bytes | Path] = {
        "config.yaml": dump_yaml({"model": saved or data, **sections}).encode(),
        "tokenizer": run_dir / "tokenizer",
        **(files or {}),
    }
    store = CheckpointStore(run_dir)
    return Checkpoint(store.save(10, {"model": state_tensors(model)}, {}, parts))


def finetune_config(folder: Path, name: str = "classify", **keys: Any) -> FinetuneConfig:
    return decode(FinetuneConfig, finetune_data(folder, name, **keys))
