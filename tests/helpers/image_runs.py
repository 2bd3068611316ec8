"""Captioned pictures on disk, and the words of command lines that learn their codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tencentpretrain.cli import main
from tests.helpers.pictures import encoded

COLOURS = ("red", "green", "blue")
SIZE, CELL = 16, 4
CELLS = (SIZE // CELL) ** 2
CODES = 12
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *COLOURS, "picture", "large"]
NET = "{channels: 4, multipliers: [1, 1, 2], blocks: 1, attention: [], groups: 2}"
TRANSFORM = {
    "model.objective.transform.size": SIZE,
    "model.objective.transform.resize": SIZE,
}


def write_pictures(folder: Path, count: int = 10) -> Path:
    """A list of pictures in three colours with captions of different lengths."""
    draw, lines = np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count * len(COLOURS)):
        channel = number % len(COLOURS)
        pixels = draw.integers(0, 60, (SIZE, SIZE, 3))
        pixels[: 4 + number % 8, :, channel] += 150
        path = folder / f"{number}.png"
        path.write_bytes(encoded(pixels.astype(np.uint8)))
        caption = f"a {'large ' * (number % 4)}{COLOURS[channel]} picture"
        lines.append(json.dumps({"path": path.name, "text": caption}))
    listing = folder / "list.jsonl"
    listing.write_text("\n".join(lines) + "\n")
    return listing


def preprocess_pictures(folder: Path) -> Path:
    """Shards of captioned pictures."""
    vocabulary = folder / "vocab.txt"
    listing = write_pictures(folder / "pictures")
    vocabulary.write_text("\n".join(WORDS) + "\n")
    words = [
        "corpus.format=image_text",
        f"corpus.path={listing}",
        f"output={folder / 'shards'}",
        "tokenizer=wordpiece",
        f"tokenizer.vocab={vocabulary}",
        "workers=1",
    ]
    assert main("preprocess", words) == 0
    return folder / "shards"


def run(shards: Path, run_dir: Path, model: str, **keys: Any) -> int:
    """Run pretrain.py in this process for a few steps; returns its exit code."""
    return main("pretrain", words_of(shards, run_dir, model, **keys))


def words_of(shards: Path, run_dir: Path, model: str, **keys: Any) -> list[str]:
    """Command line of a few steps of training."""
    settings = {
        "model": model,
        "data.path": shards,
        "data.holdout": 0.2,
        "run_dir": run_dir,
        "trainer.steps": 4,
        "trainer.batch_size": 4,
        "trainer.log_every": 1,
        "trainer.eval_every": 2,
        "trainer.precision": "fp32",
        "checkpoint.every": 2,
        "parallel.device": "cpu",
        "optim.lr": 0.003,
        **TRANSFORM,
    }
    return [f"{key}={value}" for key, value in {**settings, **keys}.items()]


def train_codec(shards: Path, run_dir: Path, **keys: Any) -> int:
    """Train a tiny autoencoder."""
    return main("pretrain", codec_words(shards, run_dir, **keys))


def codec_words(shards: Path, run_dir: Path, **keys: Any) -> list[str]:
    """Command line that trains a tiny autoencoder."""
    net = {
        "model.hidden": 8,
        "model.embedding.parts.image": NET,
        "model.target.reconstruct": NET[:-1] + f", codes: {CODES}, code_size: 4}}",
        "callbacks.restart_codes.every": 2,
    }
    return words_of(shards, run_dir, "vqvae/base", **net | keys)


def train_beit(shards: Path, run_dir: Path, codec: Path, **keys: Any) -> int:
    """Train a tiny BEiT on the codes of `codec`."""
    return main("pretrain", beit_words(shards, run_dir, codec, **keys))


def beit_words(shards: Path, run_dir: Path, codec: Path, **keys: Any) -> list[str]:
    """Command line that trains a tiny BEiT on the codes of `codec`."""
    settings = {
        "model.hidden": 16,
        "model.vocabulary": CODES,
        "model.encoder": "{layers: 1, heads: 2, ffn: 32}",
        "model.embedding.parts.patch.image_size": SIZE,
        "model.embedding.parts.patch.patch_size": CELL,
        "model.objective.patch_size": CELL,
        "model.objective.least_block": 2,
        "model.objective.codes.path": codec,
    }
    return words_of(shards, run_dir, "beit/tiny", **settings | keys)


def train_dalle(shards: Path, run_dir: Path, codec: Path, **keys: Any) -> int:
    """Train a tiny DALL-E on the codes of `codec`."""
    settings = {
        "model.hidden": 16,
        "model.vocabulary": len(WORDS) + CODES,
        "model.encoder": "{layers: 1, heads: 2, ffn: 32}",
        "model.objective.cell_size": CELL,
        "model.objective.length": CELLS + 8,
        "model.objective.codes.path": codec,
    }
    return run(shards, run_dir, "dalle/tiny", **settings | keys)
