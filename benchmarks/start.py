"""How long things take to start: `--help`, and a resumed run at an early and a late position.

`python -m benchmarks.start [--rounds 5]`
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, write_result
from tencentpretrain.config import decode
from tencentpretrain.data.loader import Loader
from tencentpretrain.data.objectives.base import OBJECTIVES
from tencentpretrain.data.shard_writer import ShardWriter
from tencentpretrain.data.shards import open_shards
from tencentpretrain.tokenizers.base import TOKENIZERS, build_tokenizer

DOCUMENTS = 20_000


def synthetic_shards(folder: Path) -> Path:
    """Documents of random ids, about 6 M tokens."""
    vocabulary = folder / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary.write_text("\n".join([*special, *(f"w{k}" for k in range(1000))]))
    choice = {"name": "space", "vocab": str(vocabulary)}
    tokenizer = build_tokenizer(decode(TOKENIZERS.config_class("space"), choice))
    draw = np.random.default_rng(0)
    with ShardWriter(folder / "shards", tokenizer) as writer:
        for _ in range(DOCUMENTS):
            writer.add([draw.integers(5, 1005, 30).tolist() for _ in range(10)])
    return folder / "shards"


def first_batch(shards: Path, samples: int) -> float:
    """Seconds from opening the shards to the first batch behind `samples` others."""
    start = time.perf_counter()
    opened = open_shards(shards)
    config = decode(OBJECTIVES.config_class("bert"), {"name": "bert"})
    objective = OBJECTIVES.build(config, opened, opened.tokenizer(), 0)
    next(iter(Loader(objective, 32, 32, seed=0, samples=samples)))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {"pretrain.py --help": [], "early": [], "late": []}
    with tempfile.TemporaryDirectory() as folder:
        shards = synthetic_shards(Path(folder))
        for _ in range(rounds):
            start = time.perf_counter()
            command = [sys.executable, str(ROOT / "pretrain.py"), "--help"]
            subprocess.run(command, check=True, capture_output=True)
            seconds["pretrain.py --help"].append(time.perf_counter() - start)
            seconds["early"].append(first_batch(shards, 32))
            seconds["late"].append(first_batch(shards, 32 * 10**9))
    lines = ["| what | seconds (median) |", "|---|---|"]
    names = {"early": "first batch after 1 step", "late": "first batch after 1,000,000,000 steps"}
    for name, own in seconds.items():
        lines.append(f"| {names.get(name, name)} | {statistics.median(own):.2f} |")
    write_result("start", f"python -m benchmarks.start --rounds {rounds}", lines)


if __name__ == "__main__":
    main()
