"""What pre-training on the same images gives a small image classifier: MAE and BEiT on CIFAR-10.

    python -m benchmarks.vision_quality [--output runs/quality] [--seeds 0 1 2]
        [--methods vit mae beit] [--scratch vit mae beit]
        [--width 128] [--layers 6] [--pretrain-epochs 200] [--epochs 40]

10,000 images of 32 x 32 in patches of 4 x 4, tested on 2,000 others. Each method pre-trains its
encoder with the first seed, on the training images without their labels; its encoder is then
fine-tuned from there and, for the methods of `--scratch`, from a random start, all alike and with
every seed. BEiT's codes come from an autoencoder that is trained first, on the same images, too.
The same command goes on where it stopped. With `--steps N` every training takes N steps only, to
see whether all of it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import ROOT, shared_data
from benchmarks.quality import Notebook

SIZE, PATCH, CODES = 32, 4, 256
CROP = ("crop=random", "padding=4")
"""What is changed of a training image, beside being mirrored."""
METHODS = ("vit", "mae", "beit")


def transform(place: str, *keys: str) -> list[str]:
    """Words for the transform at `place`."""
    return [f"{place}.transform.{key}" for key in (f"size={SIZE}", f"resize={SIZE}", *keys)]


class Experiment:
    """The runs of one method after another.

    Args:
        book: Keeps commands and results.
        options: Of the command line.
    """

    def __init__(self, book: Notebook, options: argparse.Namespace) -> None:
        self.book, self.options = book, options
        self.images = shared_data() / "image"
        self.shards = book.folder / "shards"
        book.run(
            "preprocess.py",
            "corpus.format=image",
            f"corpus.path={self.images / 'cifar10_train.tar'}",
            f"output={self.shards}",
            makes=self.shards,
        )

    def length(self, epochs: int) -> str:
        """How long a run trains."""
        steps = self.options.steps
        return f"trainer.epochs={epochs}" if steps is None else f"trainer.steps={steps}"

    def model(self, method: str) -> list[str]:
        """Words for a small model of a family."""
        width, layers = self.options.width, self.options.layers
        return [
            f"model={method}/tiny",
            f"model.hidden={width}",
            f"model.encoder.layers={layers}",
            f"model.encoder.heads={width // 32}",
            f"model.encoder.ffn={4 * width}",
            f"model.embedding.parts.patch.image_size={SIZE}",
            f"model.embedding.parts.patch.patch_size={PATCH}",
        ]

    def pretrain(self, name: str, epochs: int, *words: str) -> Path:
        """Pre-train on the images; returns the run."""
        run = self.book.folder / name
        seconds = self.book.run(
            "pretrain.py",
            *words,
            f"data.path={self.shards}",
            f"run_dir={run}",
            f"seed={self.options.seeds[0]}",
            "trainer.batch_size=256",
            self.length(epochs),
            "trainer.log_every=20",
            "schedule=cosine",
            "optim.weight_decay=0.05",
            "optim.beta2=0.95",
        )
        self.book.rows.append(f"| pre-training of {name} | {seconds:.0f} | | |")
        return run

    def pretrained(self, method: str) -> Path:
        """The pre-trained encoder of a method."""
        words = [*self.model(method), "model.objective.patch_size=4", "optim.lr=1e-3"]
        words += transform("model.objective", *CROP)
        if method == "beit":
            words += [
                f"model.vocabulary={CODES}",
                "model.objective.least_block=4",
                f"model.objective.codes.path={self.codes()}",
            ]
        return self.pretrain(method, self.options.pretrain_epochs, *words)

    def codes(self) -> Path:
        """The autoencoder whose codes BEiT learns."""
        words = ("model=vqvae/cifar", "optim.lr=2e-3")
        return self.pretrain("codes", self.options.pretrain_epochs // 8 or 1, *words)

    def finetune(self, name: str, *start: str) -> None:
        """Fine-tune with every seed."""
        words = [
            "task=image_classify",
            *start,
            *transform("task", *CROP),
            "task.mix.mixup=0.2",
            f"data.train={self.images / 'cifar10_train.tar'}",
            f"data.test={self.images / 'cifar10_test.tar'}",
            "trainer.batch_size=128",
            self.length(self.options.epochs),
            "optim.lr=1e-3",
            "optim.weight_decay=0.05",
            "schedule=cosine",
        ]
        self.book.repeat(name, "accuracy", self.options.seeds, *words)

    def run(self, method: str) -> None:
        """Everything about one method; ViT, which has no pre-training here, starts at random."""
        if method != "vit":
            self.finetune(f"{method} pre-trained", f"init={self.pretrained(method)}")
        if method in self.options.scratch:
            self.finetune(f"{method} from scratch", "init=none", *self.model(method))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--scratch", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pretrain-epochs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    book = Notebook("vision", options.output.absolute())
    book.rows.append("|---|---|---|---|")
    experiment = Experiment(book, options)
    for method in options.methods:
        experiment.run(method)


if __name__ == "__main__":
    main()
