"""Runs on the disk with given weights, and commands on them in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tencentpretrain.cli import main
from tencentpretrain.config import decode
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.tokenizers.base import TOKENIZERS, Tokenizer, build_tokenizer
from tencentpretrain.train.checkpoint import CheckpointStore
from tencentpretrain.train.load import load_weights, state_tensors
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tencentpretrain.train.source import saved_config, saved_tokenizer
from tencentpretrain.yaml_text import dump_yaml

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_tokenizer(folder: Path, words: Sequence[str], specials: Sequence[str] = SPECIALS) -> Any:
    """A WordPiece tokenizer of `specials` and `words`, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"vocab{len(words)}_{specials[0]}.txt"
    path.write_text("\n".join([*specials, *words]) + "\n", encoding="utf-8")
    config = decode(TOKENIZERS.config_class("wordpiece"), {"name": "wordpiece", "vocab": str(path)})
    return build_tokenizer(config)


def numbered_words(count: int) -> list[str]:
    """As many different words as a vocabulary of `count` entries has beside the special ones."""
    return [f"w{number}" for number in range(len(SPECIALS), count)]


def save_model(
    run_dir: Path,
    model: Model,
    data: Mapping[str, Any],
    tokenizer: Tokenizer,
    step: int = 10,
    **sections: Any,
) -> Path:
    """What a run of `model`, whose plain config is `data`, would leave; returns its checkpoint."""
    tokenizer.save(run_dir / "tokenizer")
    config = dump_yaml({"model": dict(data), **sections}).encode()
    files = {"config.yaml": config, "tokenizer": run_dir / "tokenizer"}
    store = CheckpointStore(run_dir, keep_last=100)
    tensors = {"model": state_tensors(model), "optimizer": {}}
    fingerprints = {"data": "x", "tokenizer": tokenizer.fingerprint}
    path = store.save(step, tensors, {"step": step}, files, fingerprints=fingerprints)
    store.wait()
    return path


def reopen(path: Path) -> tuple[Model, Tokenizer, dict[str, Any]]:
    """Model, tokenizer and config of a run or of a directory that a tool wrote."""
    checkpoint = open_checkpoint(path)
    tokenizer = saved_tokenizer(checkpoint)
    assert tokenizer is not None
    config = saved_config(checkpoint)
    model = build_model(decode(ModelConfig, config["model"]), tokenizer.vocab_size, seed=99)
    load_weights(model, checkpoint.tensors("model"))
    return model.eval(), tokenizer, config


def call(
    capsys: pytest.CaptureFixture[str], command: str, *words: str, **keys: Any
) -> tuple[int, str, list[str]]:
    """Exit code, output and the lines of errors of a command on the CPU in fp32."""
    settings = {"device": "cpu", "precision": "fp32"} if "checkpoint" in keys else {}
    if command in ("export", "adapt_vocab"):
        settings = {}
    given = [f"{key}={value}" for key, value in {**settings, **keys}.items()]
    code = main(command, [*words, *given])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    return code, captured.out, lines
