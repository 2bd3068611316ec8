"""How long saving a checkpoint stalls training, against writing the same bytes plainly.

    python -m benchmarks.checkpoint [--directory DIR] [--rounds 7]

Saves a model of 110 M parameters (the shapes of BERT-base) with its AdamW state as the trainer
does: three tensors for each parameter, `state.json`, manifest, every file synced, the directory
published, the previous checkpoint hidden and its deletion begun. The plain writer puts the same
bytes into one file, computes their CRC-32 and syncs it; its file is removed outside the clock. Both
are run in turn, and medians are compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import write_result
from tencentpretrain.train.checkpoint import CheckpointStore
from tencentpretrain.train.load import load_weights, state_tensors
from tencentpretrain.train.optimizer_state import load_optimizer, optimizer_tensors

Parts = Mapping[str, Mapping[str, Tensor]]


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of the shapes of BERT-base after one step of AdamW."""
    layers = [nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True) for _ in range(12)]
    model = nn.ModuleDict({"word": nn.Embedding(30522, 768), "blocks": nn.ModuleList(layers)})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def write_plainly(path: Path, parts: Parts) -> None:
    """Write and checksum the bytes of all tensors, and wait for the disk."""
    checksum = 0
    with open(path, "wb") as file:
        for tensors in parts.values():
            for tensor in tensors.values():
                data = tensor.reshape(-1).view(torch.uint8).numpy().data
                file.write(data)
                checksum = zlib.crc32(data, checksum)
        file.flush()
        os.fsync(file.fileno())


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def stall(store: CheckpointStore, step: int, parts: Parts) -> float:
    """Seconds until training may go on while a copy is written."""
    start = time.perf_counter()
    writing = store.save_in_background(step, parts, {"step": step})
    found = time.perf_counter() - start
    writing.result()
    store.wait()
    return found


def listed(times: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in sorted(times))


def measure(directory: Path, rounds: int) -> None:
    model, optimizer = build()
    parts = {"model": state_tensors(model), "optimizer": optimizer_tensors(optimizer, model)}
    size = sum(t.nbytes for tensors in parts.values() for t in tensors.values())
    store = CheckpointStore(directory, keep_last=1)
    plain: list[float] = []
    saved: list[float] = []

    def run_plain() -> None:
        plain.append(seconds(lambda: write_plainly(directory / "plain", parts)))
        (directory / "plain").unlink()

    def run_store() -> None:
        step = len(saved)
        saved.append(seconds(lambda: store.save(step, parts, {"step": step})))
        store.wait()

    for turn in range(rounds + 1):
        # What one leaves in the caches must not always burden the same other one.
        for run in (run_plain, run_store) if turn % 2 else (run_store, run_plain):
            os.sync()
            run()
        print(f"round {turn}: plain {plain[-1]:.2f} s, checkpoint {saved[-1]:.2f} s", flush=True)
    first, *stalls = [stall(store, len(saved) + turn, parts) for turn in range(rounds + 1)]
    plain, saved = plain[1:], saved[1:]  # the first round warms the allocator of the disk up
    checked = seconds(store.latest)
    found = store.latest(verify=False)
    assert found is not None
    loaded = seconds(lambda: load_weights(model, found.tensors("model")))
    loaded += seconds(lambda: load_optimizer(optimizer, model, found.tensors("optimizer")))
    ratio = statistics.median(saved) / statistics.median(plain)
    rows = {
        "bytes": f"{size / 1e9:.2f} GB in {sum(map(len, parts.values()))} tensors",
        "plain writer, median": f"{statistics.median(plain):.2f} s (all: {listed(plain)})",
        "checkpoint, median": f"{statistics.median(saved):.2f} s (all: {listed(saved)})",
        "checkpoint against plain": f"{ratio:.2f} (at most 1.3 is wanted)",
        "checkpoint in the background, median": (
            f"{statistics.median(stalls):.2f} s until training goes on (all: {listed(stalls)}; "
            f"the first, which finds the memory: {first:.2f})"
        ),
        "verifying all bytes": f"{checked:.2f} s",
        "verifying and loading": f"{loaded:.2f} s",
    }
    lines = ["| what | measured |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
    write_result("checkpoint", f"python -m benchmarks.checkpoint --rounds {rounds}", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: temporary")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=options.directory))
    try:
        measure(directory, options.rounds)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
