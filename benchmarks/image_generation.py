"""Image codes of CIFAR-10 and pictures for captions, from files to a grid, by public commands.

`python -m benchmarks.image_generation [--output runs/quality] [--codec-steps N] [--steps N]`
trains an autoencoder with codes and a DALL-E on its codes, then draws the grid of docs/images. What
is finished is not done again, and what was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import ROOT, shared_data
from benchmarks.quality import Notebook
from tencentpretrain.annotators.image_codec import ImageCodec
from tencentpretrain.data.media.images import decode_image
from tencentpretrain.data.shards import ShardSet, open_shards

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CAPTION = "a photo of a {label}"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CODES, SIZE = 256, 32
GRID = ROOT / "docs" / "images" / "dalle_cifar.png"


def write_words(folder: Path) -> tuple[Path, Path, int]:
    """A vocabulary and a file of prompts, and the number of entries."""
    entries = [*SPECIAL, *dict.fromkeys(CAPTION.format(label="").split()), *CLASSES]
    vocabulary, prompts = folder / "vocab.txt", folder / "prompts.txt"
    vocabulary.write_text("\n".join(entries) + "\n")
    prompts.write_text("".join(CAPTION.format(label=name) + "\n" for name in CLASSES))
    return vocabulary, prompts, len(entries)


def prepare(book: Notebook, part: str, vocabulary: Path) -> Path:
    """Captioned images of CIFAR-10, preprocessed."""
    shards = book.folder / part
    book.run(
        "preprocess.py",
        "corpus.format=image_text",
        f"corpus.path={shared_data() / 'image' / f'cifar10_{part}.tar'}",
        f"corpus.caption={CAPTION}",
        "tokenizer=wordpiece",
        f"tokenizer.vocab={vocabulary}",
        f"output={shards}",
        makes=shards,
    )
    return shards


def train_codec(book: Notebook, shards: list[Path], steps: int) -> Path:
    """An autoencoder of 8 x 8 codes."""
    run = book.folder / "codec"
    book.run(
        "pretrain.py",
        "model=vqvae/cifar",
        f"data.path={shards[0]}",
        f"data.dev={shards[1]}",
        f"run_dir={run}",
        f"trainer.steps={steps}",
        "trainer.batch_size=32",
        "trainer.log_every=20",
        f"trainer.eval_every={max(1, steps // 4)}",
        "data.dev_examples=1000",
        "optim.lr=1e-3",
        "schedule.warmup_steps=20",
        "callbacks.restart_codes.every=20",
        "checkpoint.every=100",
    )
    return run


def train_dalle(book: Notebook, shards: list[Path], codec: Path, entries: int, steps: int) -> Path:
    """A small DALL-E on captions of classes."""
    run = book.folder / "dalle"
    book.run(
        "pretrain.py",
        "model=dalle/tiny",
        f"model.vocabulary={entries + CODES}",
        "model.encoder.layers=4",
        "model.encoder.heads=4",
        "model.encoder.norm_order=pre",
        "model.encoder.dropout=0",
        "model.embedding.dropout=0",
        "model.embedding.parts.position.length=80",
        "model.objective.length=72",
        "model.objective.cell_size=4",
        f"model.objective.transform.size={SIZE}",
        f"model.objective.transform.resize={SIZE}",
        f"model.objective.codes.path={codec}",
        f"data.path={shards[0]}",
        f"data.dev={shards[1]}",
        f"run_dir={run}",
        f"trainer.steps={steps}",
        "trainer.batch_size=32",
        "trainer.log_every=20",
        f"trainer.eval_every={max(1, steps // 4)}",
        "data.dev_examples=500",
        "optim.lr=2e-3",
        "schedule.warmup_steps=40",
        "checkpoint.every=100",
    )
    return run


def draw(book: Notebook, dalle: Path, prompts: Path) -> None:
    """The grid: a line a class, eight pictures each."""
    grid = book.folder / "grid.png"
    book.run(
        "scripts/generate.py",
        f"checkpoint={dalle}",
        f"input={prompts}",
        "samples=8",
        "temperature=1",
        "top_p=0.95",
        "seed=0",
        f"output={grid}",
        "overwrite=true",
    )
    GRID.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(grid, GRID)


def pixels_of(shards: ShardSet) -> np.ndarray:
    """All images [N, H, W, 3] as a model of `mean` and `std` 0.5 reads them."""
    images = [decode_image(shards.media(number)) for number in range(shards.documents)]
    return np.stack(images).astype(np.float32) / 127.5 - 1


def mean_image_error(shards: list[Path]) -> float:
    """Mean squared error of the test images where each is answered by the mean training image."""
    train, test = (pixels_of(open_shards(path)) for path in shards)
    return float(np.square(test - train.mean(0, keepdims=True)).mean())


def codec_error(run: Path, shards: list[Path]) -> float:
    """The same where each is answered by what its codes are made into."""
    codec = ImageCodec.open(run, torch.device("cpu"))
    test = torch.from_numpy(pixels_of(open_shards(shards[1]))).permute(0, 3, 1, 2)
    total = 0.0
    for pixels in test.split(100):
        made = codec.decode(codec.encode((pixels + 1) / 2)) * 2 - 1
        total += float((made - pixels).square().sum())
    return total / test.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--codec-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    book = Notebook("image_generation", arguments.output)
    vocabulary, prompts, entries = write_words(book.folder)
    shards = [prepare(book, part, vocabulary) for part in ("train", "test")]
    codec = train_codec(book, shards, arguments.codec_steps)
    error, baseline = codec_error(codec, shards), mean_image_error(shards)
    used = book.values(codec, "eval/reconstruct/perplexity")[-1][1]
    dalle = train_dalle(book, shards, codec, entries, arguments.steps)
    draw(book, dalle, prompts)
    image, text = (book.values(dalle, f"eval/{kind}/loss")[-1][1] for kind in ("image", "text"))
    book.rows = [
        "|---|---|",
        f"| squared error of the mean image | {baseline:.4f} |",
        f"| squared error of {CODES} codes, 8 x 8 of them, {arguments.codec_steps} steps | "
        f"{error:.4f} |",
        f"| share of the mean image's | {error / baseline:.3f} |",
        f"| perplexity of the codes of a batch | {used:.1f} |",
        f"| DALL-E, {arguments.steps} steps: loss of a code, on 500 of them | {image:.3f} |",
        f"| the same of a token of the caption | {text:.3f} |",
        f"| loss of a code where all {CODES} are alike | {np.log(CODES):.3f} |",
    ]
    book.write("| figure on the 2,000 test images | value |")


if __name__ == "__main__":
    main()
