"""Peak memory and time of a language-model loss with a large vocabulary, in chunks and plainly.

`python -m benchmarks.lm_memory [--vocabulary 128000] [--positions 2048] [--width 512]`

Forward and backward of output layer and cross entropy in fp32. Each way runs in a process of its
own, so that its peak is its own; the memory that is there before counts for neither.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import ROOT, write_result
from tencentpretrain.targets.cross_entropy import vocabulary_loss

WAYS = ("chunks", "plain")


def peak_bytes() -> int:
    """Greatest memory of this process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def loss_of(way: str, states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    if way == "chunks":
        return vocabulary_loss(states, weight, None, labels)[0].value
    return F.cross_entropy(F.linear(states, weight), labels)


def measure(way: str, vocabulary: int, positions: int, width: int, repeats: int) -> None:
    """Print memory in bytes and seconds of one way as JSON."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    states = torch.randn(positions, width, device=device, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=device).mul_(0.02).requires_grad_()
    labels = torch.randint(vocabulary, (positions,), device=device)
    # The gradients are there either way.
    states.grad, weight.grad = torch.ones_like(states), torch.ones_like(weight)
    before, seconds = peak_bytes(), []
    for _ in range(repeats):
        start = time.perf_counter()
        loss_of(way, states, weight, labels).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    print(json.dumps([peak_bytes() - before, statistics.median(seconds)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process")
    options = parser.parse_args()
    sizes = options.vocabulary, options.positions, options.width, options.repeats
    if options.way:
        measure(options.way, *sizes)
        return
    words = [f"--vocabulary={sizes[0]}", f"--positions={sizes[1]}", f"--width={sizes[2]}"]
    words.append(f"--repeats={sizes[3]}")
    command = [sys.executable, "-m", "benchmarks.lm_memory", *words]
    rows = ["| way | peak memory beyond inputs and gradients | seconds |", "|---|---|---|"]
    for way in WAYS:
        output = subprocess.run(
            [*command, f"--way={way}"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        memory, seconds = json.loads(output.splitlines()[-1])
        rows.append(f"| {way} | {memory / 1e6:,.0f} MB | {seconds:.2f} |")
    write_result("lm_memory", "python -m benchmarks.lm_memory " + " ".join(words), rows)


if __name__ == "__main__":
    main()
