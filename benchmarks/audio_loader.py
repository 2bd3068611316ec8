"""Hours of sound an hour of the loader, against a plain loop of soundfile and torchaudio.

    python -m benchmarks.audio_loader [--workers 0 1] [--rounds 7]

Both decode the same wav files, resample them to 16 kHz, make 80 filter banks of each, normalise
them, and pad them to batches, with as many workers; they run in turn, and the ratio is the median
over rounds of the ratio in a round. The sounds are spoken digits, one after another up to a length.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchaudio.compliance import kaldi

from benchmarks.common import shared_data, write_result
from tencentpretrain.config import decode
from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.loader import AHEAD, Loader
from tencentpretrain.data.media.records import read_media
from tencentpretrain.data.objectives import OBJECTIVES
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
from tencentpretrain.data.shards import open_shards

RATE = 16000
BATCH = 32
BATCHES = 8
SECONDS = {"a digit": 0.0, "about 10 s": 10.0}


def write_sounds(folder: Path, seconds: float, count: int) -> tuple[Path, float]:
    """A list of `count` files at least `seconds` long, and how long all are together, in hours."""
    config = decode(
        CorpusConfig, {"path": str(shared_data() / "speech" / "fsdd.tar"), "format": "audio"}
    )
    digits = itertools.cycle(
        [soundfile.read(io.BytesIO(record.data), dtype="int16") for record in read_media(config)]
    )
    lines, total = ["text\tpath"], 0.0
    for number in range(count):
        parts, length = [], 0.0
        while not parts or length < seconds:
            samples, rate = next(digits)
            parts.append(samples)
            length += len(samples) / rate
        soundfile.write(folder / f"{number}.wav", np.concatenate(parts), rate)
        lines.append(f"a\t{number}.wav")
        total += length
    (folder / "list.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "list.tsv", total / 3600


def ours(folder: Path, listed: Path, workers: int) -> Iterator[Any]:
    """Endless batches of the toolkit."""
    shards = folder / "shards"
    if not shards.exists():
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", encoding="utf-8")
        run_preprocess(
            decode(
                PreprocessConfig,
                {
                    "tokenizer": {"name": "character", "vocab": str(folder / "vocab.txt")},
                    "corpus": {"path": str(listed), "format": "audio_text"},
                    "output": str(shards),
                    "workers": 1,
                },
            )
        )
    opened = open_shards(shards)
    config = decode(OBJECTIVES.config_class("s2t"), {"name": "s2t", "length": 6000})
    objective = OBJECTIVES.build(config, opened, opened.tokenizer(), 0)
    return iter(Loader(objective, BATCH, BATCH, 0, workers))


class Files(Dataset[Tensor]):
    """What one would write by hand."""

    def __init__(self, listed: Path) -> None:
        lines = listed.read_text(encoding="utf-8").splitlines()[1:]
        self.paths = [listed.parent / line.split("\t")[1] for line in lines]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        samples, rate = soundfile.read(self.paths[index], dtype="float32")
        wave = F.resample(torch.from_numpy(samples)[None], rate, RATE)
        frames: Tensor = kaldi.fbank(wave * 32768, num_mel_bins=80, sample_frequency=RATE)
        return (frames - frames.mean(0)) / frames.std(0)


def _padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def plain(listed: Path, workers: int) -> Iterator[Any]:
    """Endless batches of the loop by hand."""
    files = Files(listed)
    loader = DataLoader(
        files,
        BATCH,
        # Without an end of an epoch, where batches would no longer be made ahead of time.
        sampler=RandomSampler(files, replacement=True, num_samples=1 << 30),
        drop_last=True,
        num_workers=workers,
        collate_fn=_padded,
        prefetch_factor=AHEAD if workers else None,
    )
    yield from loader


def timed(batches: Iterator[Any]) -> float:
    """Seconds of some batches, behind those that workers have made while the other side ran."""
    for _ in range(AHEAD + 1):
        next(batches)
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = BATCH * BATCHES
    lines = ["| sounds | workers | ours, h/h | by hand, h/h | ratio |", "|---|---|---|---|---|"]
    for name, seconds in SECONDS.items():
        with tempfile.TemporaryDirectory() as folder:
            listed, hours = write_sounds(Path(folder), seconds, count)
            for workers in options.workers:
                pair = ours(Path(folder), listed, workers), plain(listed, workers)
                for batches in pair:
                    timed(batches)
                rounds = [[timed(batches) for batches in pair] for _ in range(options.rounds)]
                sides = zip(*rounds, strict=True)
                speeds = [3600 * hours / statistics.median(side) for side in sides]
                ratio = statistics.median(theirs / mine for mine, theirs in rounds)
                lines.append(
                    f"| {name} | {workers} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {ratio:.2f} |"
                )
                del pair
    write_result("audio_loader", "python -m benchmarks.audio_loader", lines)


if __name__ == "__main__":
    main()
