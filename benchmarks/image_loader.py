"""Images a second of the loader, against ImageFolder and DataLoader of torchvision and torch.

    python -m benchmarks.image_loader [--workers 0 1 2] [--rounds 5]

Both decode the same JPEG files and make the same random crops, flips and normalised batches, with
as many workers; they run in turn, and the ratio is the median over rounds of the ratio in a round.
The small images are those of CIFAR-10, the large ones are made of them, 500 x 375.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.common import shared_data, write_result
from tencentpretrain.config import decode
from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.loader import AHEAD, Loader
from tencentpretrain.data.media.records import read_media
from tencentpretrain.data.objectives import OBJECTIVES
from tencentpretrain.data.objectives.base import NoVocabulary
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
from tencentpretrain.data.shards import open_shards

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ARCHIVE = "image/cifar10_test.tar"


@dataclass(frozen=True)
class Case:
    """Images of one size and what is done to them.

    Args:
        size: Width and height of the stored images; None leaves them as they are.
        count: Number of images.
        batch_size: Images of a batch.
        batches: Batches of a round.
        transform: Keys of our transform.
        cut: What torchvision does instead, before both flip and normalise.
    """

    size: tuple[int, int] | None
    count: int
    batch_size: int
    batches: int
    transform: dict[str, Any]
    cut: Any


CASES = {
    "32 x 32, crop after padding": Case(
        None, 2000, 128, 10, {"size": 32, "crop": "random", "padding": 4}, T.RandomCrop(32, 4)
    ),
    "500 x 375, random area to 224 x 224": Case(
        (500, 375), 400, 32, 5, {"size": 224}, T.RandomResizedCrop(224)
    ),
}


def unpack(folder: Path, case: Case) -> Path:
    """The images as files in folders of classes."""
    archive = str(shared_data() / ARCHIVE)
    records = read_media(decode(CorpusConfig, {"path": archive, "format": "image"}))
    for number, record in enumerate(itertools.islice(records, 0, None, 2000 // case.count)):
        data = record.data
        if case.size is not None:
            file = io.BytesIO()
            Image.open(io.BytesIO(data)).resize(case.size).save(file, "JPEG", quality=90)
            data = file.getvalue()
        path = folder / "files" / record.label / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "files"


def ours(files: Path, output: Path, case: Case, workers: int) -> Iterator[Any]:
    """Endless batches of the toolkit."""
    if not output.exists():
        corpus = {"path": str(files), "format": "image"}
        run_preprocess(decode(PreprocessConfig, {"corpus": corpus, "output": str(output)}))
    transform = {**case.transform, "mean": MEAN, "std": STD}
    config = decode(OBJECTIVES.config_class("image"), {"name": "image", "transform": transform})
    objective = OBJECTIVES.build(config, open_shards(output), NoVocabulary(), 0)
    size = case.batch_size
    return iter(Loader(objective, size, size, seed=0, workers=workers))


def theirs(files: Path, case: Case, workers: int) -> Iterator[Any]:
    """Endless batches of torchvision and torch."""
    steps = [case.cut, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)]
    loader = DataLoader(
        ImageFolder(files, T.Compose(steps)),
        batch_size=case.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def images_per_second(batches: Iterator[Any], case: Case, workers: int) -> float:
    """Speed of one round, without what was made before it began, nor what is made behind it."""
    for _ in itertools.islice(batches, AHEAD * workers):
        pass
    began = time.perf_counter()
    for _ in itertools.islice(batches, case.batches):
        pass
    speed = case.batches * case.batch_size / (time.perf_counter() - began)
    # Until the workers have made as much ahead as they may, they would slow the other side.
    time.sleep(1.5 * AHEAD * workers * case.batch_size / speed)
    return speed


def compare(files: Path, output: Path, case: Case, workers: int, rounds: int) -> str:
    """A line of the result."""
    both = [ours(files, output, case, workers), theirs(files, case, workers)]
    for batches in both:  # starting workers, and what they have made ahead
        images_per_second(batches, case, workers)
    speeds: list[list[float]] = [[], []]
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            speeds[side].append(images_per_second(both[side], case, workers))
    ratios = [mine / other for mine, other in zip(*speeds, strict=True)]
    mine, other = (statistics.median(found) for found in speeds)
    return f"{workers} | {mine:,.0f} | {other:,.0f} | {statistics.median(ratios):.2f} × |"


def measure(workers: Sequence[int], rounds: int) -> list[str]:
    """All lines of the result."""
    lines = [
        "| images | workers | images/s | torchvision, images/s | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            files = unpack(Path(folder), case)
            for count in workers:
                line = compare(files, Path(folder) / "shards", case, count, rounds)
                lines.append(f"| {name} | {line}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that medians are over")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = measure(options.workers, options.rounds)
    words = " ".join(map(str, options.workers))
    command = f"python -m benchmarks.image_loader --workers {words} --rounds {options.rounds}"
    write_result("image_loader", command, lines)


if __name__ == "__main__":
    main()
