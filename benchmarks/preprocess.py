"""Preprocessing against the bare `encode_batch` of the `tokenizers` library, and its memory.

`python -m benchmarks.preprocess [--rounds 5] [--megabytes 16] [--memory 200]`

Both use all cores: the library by its threads, preprocessing by its processes. They take turns, and
the ratio of neighbouring turns is reported as a median, so that a machine whose speed drifts gives
the same answer. The time of preprocessing has everything in it: starting the processes, reading,
checksums and waiting for the disk. The bare call finds its text in memory and drops the ids.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.common import ROOT, shared_data, write_result
from tencentpretrain.commands import COMMANDS
from tencentpretrain.configure import load_config
from tencentpretrain.data.engine import available_cores
from tencentpretrain.data.preprocess import run_preprocess

CASES: Mapping[str, tuple[str, list[str]]] = {
    "WordPiece, Chinese": ("clue_zh.txt", ["wordpiece", "google_zh_vocab.txt"]),
    "WordPiece, English": ("wikitext2_en.txt", ["wordpiece", "google_uncased_en_vocab.txt"]),
    "byte-level BPE, English": (
        "wikitext2_en.txt",
        ["bpe", "gpt2_vocab.json", "gpt2_merges.txt"],
    ),
}
BATCH = 8192
"""Texts in one bare call: enough for all threads, and little enough for any memory."""


def words_for(corpus: Path, tokenizer: list[str], output: Path) -> list[str]:
    """The command line."""
    vocabularies = shared_data() / "vocab"
    kind, vocab, *merges = tokenizer
    words = [f"tokenizer={kind}", f"tokenizer.vocab={vocabularies / vocab}"]
    words += [f"tokenizer.merges={vocabularies / name}" for name in merges]
    return [*words, f"corpus.path={corpus}", f"output={output}", "overwrite=true"]


def replicate(name: str, megabytes: int, folder: Path) -> Path:
    """A corpus of at least `megabytes`, made of copies of a real one."""
    content = (shared_data() / "corpora" / name).read_bytes().rstrip() + b"\n\n"
    path = folder / f"{megabytes}_{name}"
    with open(path, "wb") as file:
        while file.tell() < megabytes * 1e6:
            file.write(content)
    return path


def preprocess_seconds(words: list[str]) -> float:
    start = time.perf_counter()
    with redirect_stdout(StringIO()):
        run_preprocess(load_config(COMMANDS["preprocess"], words))  # type: ignore[arg-type]
    return time.perf_counter() - start


def bare_seconds(library: Tokenizer, texts: list[str]) -> float:
    start = time.perf_counter()
    for first in range(0, len(texts), BATCH):
        library.encode_batch(texts[first : first + BATCH], add_special_tokens=False)
    return time.perf_counter() - start


def compete(name: str, rounds: int, megabytes: int, folder: Path) -> str:
    """One line of the table of speeds."""
    corpus_name, tokenizer = CASES[name]
    corpus = replicate(corpus_name, megabytes, folder)
    words = words_for(corpus, tokenizer, folder / "shards")
    preprocess_seconds(words)  # a warm-up for both: page cache, clocks
    library = Tokenizer.from_file(str(folder / "shards" / "tokenizer" / "tokenizer.json"))
    texts = [text for text in corpus.read_text(encoding="utf-8").split("\n") if text.strip()]
    ours, bare = [], []
    for _ in range(rounds):
        bare.append(bare_seconds(library, texts))
        ours.append(preprocess_seconds(words))
    size = corpus.stat().st_size / 1e6
    ratio = statistics.median(b / o for b, o in zip(bare, ours, strict=True))
    return (
        f"| {name} | {size / statistics.median(ours):.2f} | {size / statistics.median(bare):.2f} "
        f"| {ratio:.2f} |"
    )


def peak_memory(megabytes: int, folder: Path) -> str:
    """Peak resident memory of the parent and of the largest worker, in words."""
    corpus = replicate("clue_zh.txt", megabytes, folder)
    words = words_for(corpus, CASES["WordPiece, Chinese"][1], folder / "large")
    process = subprocess.Popen([sys.executable, "preprocess.py", *words], cwd=ROOT)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in descendants(process.pid):
            peaks[pid] = max(peaks.get(pid, 0), peak_of(pid))
        time.sleep(0.2)
    parent = peaks.pop(process.pid)
    return (
        f"{corpus.stat().st_size / 1e6:.0f} MB of WordPiece, Chinese: largest worker "
        f"{max(peaks.values()) / 1e3:.0f} MB, parent {parent / 1e3:.0f} MB"
    )


def descendants(root: int) -> list[int]:
    """Process ids of `root` and all processes below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def peak_of(pid: int) -> int:
    """Peak resident memory in kB, 0 once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=16, help="size of the corpus for speed")
    parser.add_argument("--memory", type=int, default=200, help="size of the corpus for memory")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [
            f"{available_cores()} cores; MB/s are medians.",
            "",
            "| tokenizer, text | preprocess MB/s | encode_batch MB/s | ratio (median) |",
            "|---|---|---|---|",
            *(compete(case, options.rounds, options.megabytes, folder) for case in CASES),
            "",
            f"Peak memory: {peak_memory(options.memory, folder)}.",
        ]
    command = (
        f"python -m benchmarks.preprocess --rounds {options.rounds} "
        f"--megabytes {options.megabytes} --memory {options.memory}"
    )
    write_result("preprocess", command, lines)


if __name__ == "__main__":
    main()
