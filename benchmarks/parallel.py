"""Many processes against one on the same cores, and one file out of the pieces of a large model.

    python -m benchmarks.parallel [--steps 60] [--rounds 3] [--parameters 1e9]

Training: BERT-mini, batch 32 x 128, real text, as users run it. One process with all threads and as
many processes with one thread each are run in turn; medians of the tokens/s of their log lines are
compared. Consolidation: the pieces of four processes are written, then `scripts/export.py` makes
one file of them in a process of its own, whose time and peak memory are told.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import ROOT, shared_data, write_result
from tencentpretrain.train.checkpoint_files import TensorFile, write_parts
from tencentpretrain.train.durable import FileRecord, write_bytes
from tencentpretrain.train.manifest import MANIFEST, Manifest
from tencentpretrain.train.pieces import SHAPES, STARTS, piece_file

PIECES = 4
WIDTH = 2048


def run(words: list[str], processes: int, threads: int) -> None:
    """Run pretrain.py in so many processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [*launcher, "pretrain.py", *words]
    subprocess.run(command, cwd=ROOT, check=True, env=environment, stderr=subprocess.DEVNULL)


def tokens_per_second(run_dir: Path) -> float:
    """Median of the log lines behind the first."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(line).get("perf/tokens_per_s") for line in lines]
    found: list[float] = [rate for rate in rates if rate is not None]
    return statistics.median(found[1:])


def measure_training(folder: Path, steps: int, rounds: int) -> list[str]:
    cores = len(os.sched_getaffinity(0))
    data = shared_data()
    vocabulary = data / "vocab" / "google_zh_vocab.txt"
    words = ["tokenizer=wordpiece", f"tokenizer.vocab={vocabulary}"]
    words += [f"corpus.path={data}/corpora/clue_zh.txt", f"output={folder / 'shards'}"]
    subprocess.run([sys.executable, "preprocess.py", *words], cwd=ROOT, check=True)
    ways = {"one process": ["parallel=none"], "ddp": ["parallel=ddp"], "fsdp": ["parallel=fsdp"]}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, chosen in ways.items():
            run_dir = folder / f"{name.replace(' ', '_')}_{turn}"
            words = ["model=bert/mini", f"data.path={folder / 'shards'}", f"run_dir={run_dir}"]
            words += [f"trainer.steps={steps}", "trainer.log_every=10", "trainer.batch_size=32"]
            words += [f"trainer.eval_every={steps}", "data.dev_examples=8", *chosen]
            is_one = name == "one process"
            run(words, 1 if is_one else cores, cores if is_one else 1)
            rates[name].append(tokens_per_second(run_dir))
            print(f"round {turn}: {name} {rates[name][-1]:,.0f} tokens/s", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    first = medians["one process"]
    lines = [f"Training on {cores} cores, medians of {rounds} rounds:", ""]
    lines += ["| way | tokens/s | against one process |", "|---|---|---|"]
    return lines + [
        f"| {name} | {rate:,.0f} | {rate / first:.2f} |" for name, rate in medians.items()
    ]


def write_pieces(run_dir: Path, parameters: int) -> Path:
    """A checkpoint of `PIECES` processes with as many values, of which no tensor is whole."""
    directory = run_dir / "checkpoints" / "step_00000001"
    directory.mkdir(parents=True)
    rows = math.ceil(parameters / WIDTH / 100 / PIECES) * PIECES
    names = [f"encoder.layers.{number}.weight" for number in range(100)]
    records: dict[str, FileRecord] = {}
    for rank in range(PIECES):
        share = rows // PIECES
        tensors: dict[str, Tensor] = {name: torch.full((share, WIDTH), 1.0) for name in names}
        metadata = {
            SHAPES: json.dumps({name: [rows, WIDTH] for name in names}),
            STARTS: json.dumps({name: [rank * share, 0] for name in names}),
        }
        files = {"config.yaml": b"seed: 0\n"} if rank == 0 else {}
        file = TensorFile(piece_file("model", rank, PIECES), tensors, metadata)
        records |= write_parts(directory, [file], files)
    manifest = Manifest(step=1, fingerprints={}, files=dict(sorted(records.items())))
    write_bytes(directory / MANIFEST, manifest.to_bytes())
    return directory


def measure_consolidation(folder: Path, parameters: int) -> list[str]:
    directory = write_pieces(folder / "large", parameters)
    size = sum(path.stat().st_size for path in directory.rglob("*.safetensors"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    start = time.perf_counter()
    command = [sys.executable, "scripts/export.py", f"checkpoint={directory}"]
    subprocess.run([*command, f"output={folder / 'one'}"], cwd=ROOT, check=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    whole = (folder / "one").rglob("model.safetensors")
    assert sum(path.stat().st_size for path in whole) > 0.99 * size
    known = f"{peak / 2**20:.2f} GiB" + (" or less" if peak == before else "")
    return [
        "",
        f"One file of {PIECES} pieces, {size / 1e9:.2f} GB in fp32:",
        "",
        "| what | measured |",
        "|---|---|",
        f"| time, checksums of both included | {seconds:.1f} s |",
        f"| peak memory, with the pages of the files that are mapped | {known} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parameters", type=float, default=1e9)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        lines = measure_consolidation(folder, int(options.parameters))
        lines = measure_training(folder, options.steps, options.rounds) + lines
    finally:
        shutil.rmtree(folder)
    command = f"python -m benchmarks.parallel --steps {options.steps} --rounds {options.rounds}"
    write_result("parallel", command, lines)


if __name__ == "__main__":
    main()
