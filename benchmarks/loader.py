"""How fast documents are read and examples made, against what training consumes.

`python -m benchmarks.loader [--shards DIR] [--rounds 15] [--consumed 7500]`

Without shards, the Chinese corpus of the real data is preprocessed first. Times are medians over
rounds of many calls in random order, so that memory is not read in the order in which it lies.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import write_result
from benchmarks.preprocess import CASES, preprocess_seconds, words_for
from benchmarks.preprocess import shared_data as real_data
from tencentpretrain.config import decode
from tencentpretrain.data.loader import Loader
from tencentpretrain.data.objectives import OBJECTIVES, Objective
from tencentpretrain.data.order import generator, permute
from tencentpretrain.data.shards import ShardSet, open_shards

BATCH = 32
CALLS = 500
OBJECTIVE_CASES: tuple[tuple[str, dict[str, object]], ...] = (
    ("bert", {}),
    ("bert", {"masking": "word"}),
    ("bert", {"masking": "span"}),
    ("albert", {}),
    ("mlm", {}),
    ("mlm", {"pack": False}),
    ("lm", {}),
)


def median_us(call: Callable[[int], object], count: int, rounds: int) -> float:
    """Microseconds of one `call` with a number below `count`."""
    random = np.random.default_rng(0)
    times = []
    for _ in range(rounds):
        numbers = random.integers(0, count, CALLS).tolist()
        start = time.perf_counter()
        for number in numbers:
            call(number)
        times.append((time.perf_counter() - start) / CALLS)
    return 1e6 * statistics.median(times)


def build(shards: ShardSet, name: str, values: dict[str, object]) -> tuple[Objective, float]:
    """An objective over all documents, and the milliseconds of indexing them."""
    config = decode(OBJECTIVES.get(name).Config, {"name": name, **values})  # type: ignore[attr-defined]
    tokenizer = shards.tokenizer()
    start = time.perf_counter()
    objective = OBJECTIVES.build(config, shards, tokenizer, 0)
    return objective, 1e3 * (time.perf_counter() - start)


def loader_speed(objective: Objective, workers: int, rounds: int) -> tuple[float, float]:
    """Examples and tokens a second of the whole loader, in medians over rounds of 20 batches."""
    batches = iter(Loader(objective, BATCH, BATCH, seed=0, workers=workers))
    for _ in itertools.islice(batches, 10):
        pass
    examples, tokens = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        count = sum(batch.tokens for micros in itertools.islice(batches, 20) for batch in micros)
        seconds = time.perf_counter() - start
        examples.append(20 * BATCH / seconds)
        tokens.append(count / seconds)
    return statistics.median(examples), statistics.median(tokens)


def basics(shards: ShardSet, rounds: int) -> list[str]:
    """Times of what examples are made of."""
    lines = [
        ("a document by index", lambda n: shards.read(n).sum(), shards.documents),
        ("a generator from its key", lambda n: generator(0, 1, n), 1 << 30),
        ("a place in a permutation", lambda n: permute(n, 1 << 30, 0, 1), 1 << 30),
    ]
    return [f"| {what} | {median_us(call, n, rounds):.1f} |" for what, call, n in lines]


def measure(shards: ShardSet, rounds: int, consumed: float) -> list[str]:
    """All lines of the result."""
    lines = [
        f"{shards.documents:,} documents, {shards.tokens:,} tokens; training consumes "
        f"{consumed:,.0f} tokens/s; batches of {BATCH}.",
        "",
        "| | µs |",
        "|---|---|",
        *basics(shards, rounds),
        "",
        "| objective | index, ms | ready example, µs | mean tokens | filled | examples/s "
        "| tokens/s | of training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, values in OBJECTIVE_CASES:
        objective, index_ms = build(shards, name, values)
        ready = median_us(lambda n, o=objective: o.make(1, n), len(objective), rounds)
        examples, tokens = loader_speed(objective, 0, rounds)
        options = " ".join(f"{key}={value}" for key, value in values.items())
        length = objective.config.length
        lines.append(
            f"| {name} {options} | {index_ms:.1f} | {ready:.0f} | {tokens / examples:.0f} "
            f"| {tokens / examples / length:.0%} | {examples:,.0f} | {tokens:,.0f} "
            f"| {tokens / consumed:.0f} × |"
        )
    objective, _ = build(shards, "bert", {})
    for workers in (1, 2):
        examples, tokens = loader_speed(objective, workers, rounds)
        lines.append(
            f"| bert, {workers} worker processes | | | | | {examples:,.0f} | {tokens:,.0f} "
            f"| {tokens / consumed:.0f} × |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, help="directory that preprocess.py wrote")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that medians are over")
    parser.add_argument(
        "--consumed", type=float, default=7500, help="tokens/s of training to compare with"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        directory = options.shards
        if directory is None:
            directory = Path(folder) / "shards"
            corpus, tokenizer = CASES["WordPiece, Chinese"]
            preprocess_seconds(words_for(real_data() / "corpora" / corpus, tokenizer, directory))
        lines = measure(open_shards(directory), options.rounds, options.consumed)
    write_result("loader", f"python -m benchmarks.loader --rounds {options.rounds}", lines)


if __name__ == "__main__":
    main()
