"""Small shards on disk and the words of a command line that trains on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tencentpretrain.cli import main
from tencentpretrain.config import decode
from tencentpretrain.data.shard_writer import ShardWriter
from tencentpretrain.tokenizers.base import TOKENIZERS, build_tokenizer

WORDS = [f"w{number}" for number in range(30)]


def write_shards(
    folder: Path, documents: int = 40, seed: int = 0, words: int = 30, order: int = 1
) -> Path:
    """Documents of a language in which each word has a favourite next one."""
    vocabulary = folder / f"vocab{words}.txt"
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary.write_text("\n".join([*special, *WORDS[:words][::order]]) + "\n")
    config = decode(
        TOKENIZERS.config_class("wordpiece"), {"name": "wordpiece", "vocab": str(vocabulary)}
    )
    draw = np.random.default_rng(seed)
    shards = folder / f"shards{documents}_{seed}_{words}"
    with ShardWriter(shards, build_tokenizer(config)) as writer:
        for _ in range(documents):
            sentences = []
            for _ in range(int(draw.integers(2, 6))):
                ids = [int(draw.integers(5, 5 + words))]
                for _ in range(int(draw.integers(3, 12))):
                    ids.append(5 + (ids[-1] - 4) % words)
                sentences.append(ids)
            writer.add(sentences)
    return shards


def words_of(shards: Path, run_dir: Path, **keys: Any) -> list[str]:
    """Command line of a tiny run."""
    settings = {
        "model": "bert/tiny",
        "model.hidden": 16,
        "model.encoder.layers": 1,
        "model.objective.length": 32,
        "data.path": shards,
        "data.holdout": 0.1,
        "run_dir": run_dir,
        "trainer.steps": 8,
        "trainer.batch_size": 4,
        "trainer.precision": "fp32",  # whatever this machine is fast at
        "trainer.log_every": 1,
        "trainer.eval_every": 4,
        "checkpoint.every": 3,
        "parallel.device": "cpu",
    }
    return [f"{key}={value}" for key, value in {**settings, **keys}.items()]


def pretrain(shards: Path, run_dir: Path, **keys: Any) -> int:
    """Run pretrain.py in this process; returns its exit code."""
    return main("pretrain", words_of(shards, run_dir, **keys))


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl without what depends on the clock."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in records]
