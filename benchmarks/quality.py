"""Quality on real data: every figure of the documentation, each from commands that it prints.

`python -m benchmarks.quality EXPERIMENT [--output runs/quality] [--seeds 0 1 2]` with EXPERIMENT
one of chnsenticorp, rt_polarity, msra, shakespeare, wikitext. Only public commands are run. The
first seed is that of pre-training too; fine-tuning is repeated with each.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, environment, shared_data


class Notebook:
    """Runs commands one after another and keeps them with their results."""

    def __init__(self, name: str, output: Path) -> None:
        self.name, self.folder = name, output / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines = [f"# {name}", "", environment(), "", "```"]
        self.rows: list[str] = []

    def run(self, script: str, *words: str, makes: Path | None = None) -> float:
        """Run a script of the toolkit; returns its seconds.

        If what it `makes` is there already the command is only noted: outputs appear when they are
        complete, so that nothing has to be done twice.
        """
        command = [script, *words]
        self.note(*command)
        if makes is not None and makes.exists():
            return 0.0
        print("$ python", *command, flush=True)
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        return time.perf_counter() - start

    def note(self, script: str, *words: str) -> None:
        """Keep a command that is run elsewhere."""
        self.lines.append(_portable(" ".join(["python", script, *words])))

    def values(self, run: Path, name: str) -> list[tuple[int, float]]:
        """Steps and values of a metric of a run."""
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return [(record["step"], record[name]) for record in records if name in record]

    def repeat(self, name: str, metric: str, seeds: list[int], *words: str) -> None:
        """Fine-tune with each seed and add a row: mean seconds, mean score, the scores."""
        seconds, scores = [], []
        for seed in seeds:
            run = self.folder / f"{name.replace(' ', '_')}_{seed}"
            seconds.append(self.run("finetune/run.py", *words, f"run_dir={run}", f"seed={seed}"))
            scores.append(self.values(run, f"test/{metric}")[-1][1])
        each = ", ".join(f"{score:.4f}" for score in scores)
        mean = statistics.mean(scores)
        self.rows.append(f"| {name} | {statistics.mean(seconds):.0f} | {mean:.4f} | {each} |")
        self.write(f"| run | seconds | test {metric} | by seed |")

    def write(self, heading: str) -> None:
        """Keep commands and results as benchmarks/results/<name>.md."""
        text = "\n".join([*self.lines, "```", "", heading, *self.rows, ""])
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{self.name}.md").write_text(text, encoding="utf-8")
        print(text)


def _portable(command: str) -> str:
    """A command without the folders of this machine."""
    command = command.replace(str(shared_data()), "$TENCENTPRETRAIN_DATA")
    return command.replace(f"{ROOT}/", "").replace(sys.prefix, ".venv")


def pretrained_bert(
    book: Notebook, language: str, steps: int, seed: int
) -> tuple[Path, float, tuple[str, str]]:
    """BERT-mini that has read a corpus and the texts of a task: run, seconds, its tokenizer."""
    data = shared_data()
    tables = data / "classification" / f"{book.name}_{language}"
    corpora = {"zh": ["clue_zh.txt"], "en": ["wikitext2_en.txt", "tinyshakespeare_en.txt"]}
    vocabulary = {"zh": "google_zh_vocab.txt", "en": "google_uncased_en_vocab.txt"}[language]
    texts = [str(data / "corpora" / name) for name in corpora[language]]
    tokenizer = ("tokenizer=wordpiece", f"tokenizer.vocab={data / 'vocab' / vocabulary}")
    shards, pretrained = book.folder / "shards", book.folder / "pretrained"
    book.run(
        "preprocess.py",
        *tokenizer,
        f"corpus.path=[{','.join([*texts, str(tables / 'train.tsv')])}]",
        "corpus.column=text_a",
        f"output={shards}",
        makes=shards,
    )
    seconds = book.run(
        "pretrain.py",
        "model=bert/mini",
        f"data.path={shards}",
        f"run_dir={pretrained}",
        f"seed={seed}",
        "trainer.batch_size=32",
        f"trainer.steps={steps}",
        "optim.lr=7e-4",
        "model.objective.length=128",
        "trainer.log_every=50",
        f"checkpoint.every={steps}",
    )
    return pretrained, seconds, tokenizer


def classification(book: Notebook, language: str, steps: int, seeds: list[int]) -> None:
    """BERT-mini on labelled texts: from scratch, and pre-trained on a corpus and these texts."""
    tables = shared_data() / "classification" / f"{book.name}_{language}"
    pretrained, seconds, tokenizer = pretrained_bert(book, language, steps, seeds[0])
    book.rows += ["|---|---|---|---|", f"| pre-training | {seconds:.0f} | | |"]
    for name, start in (
        ("pre-trained", (f"init={pretrained}",)),
        ("from scratch", ("init=none", "model=bert/mini", *tokenizer)),
    ):
        files = (f"data.{part}={tables / part}.tsv" for part in ("train", "dev", "test"))
        words = ("optim.lr=3e-4", "trainer.epochs=2", "trainer.batch_size=32")
        book.repeat(name, "accuracy", seeds, "task=classify", *start, *files, *words)


def chnsenticorp(book: Notebook, seeds: list[int]) -> None:
    classification(book, "zh", 1500, seeds)


def rt_polarity(book: Notebook, seeds: list[int]) -> None:
    classification(book, "en", 1000, seeds)


def msra(book: Notebook, seeds: list[int]) -> None:
    """Entities: trained on nine tenths of the development file, a tenth for choosing."""
    data = shared_data()
    tables = data / "ner" / "msra_zh"
    header, *rows = (tables / "dev.tsv").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(rows)
    tenth = len(rows) // 10
    for name, part in (("dev", rows[:tenth]), ("train", rows[tenth:])):
        text = "\n".join([header, *part]) + "\n"
        (book.folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    pretrained = book.folder.parent / "chnsenticorp" / "pretrained"
    vocabulary = f"tokenizer.vocab={data / 'vocab' / 'google_zh_vocab.txt'}"
    book.rows.append("|---|---|---|---|")
    for name, start in (
        ("pre-trained", (f"init={pretrained}",)),
        ("from scratch", ("init=none", "model=bert/mini", "tokenizer=wordpiece", vocabulary)),
    ):
        files = (
            *(f"data.{part}={book.folder / part}.tsv" for part in ("train", "dev")),
            f"data.test={tables / 'test.tsv'}",
        )
        words = ("optim.lr=5e-4", "trainer.epochs=20")
        book.repeat(name, "f1", seeds, "task=ner", *start, *files, *words)


EXACT = ("tokenizer.keep_spaces=true", "corpus.keep_newlines=true")


def language_model(
    book: Notebook, corpus: str, tokenizer: str, steps: int, seeds: list[int]
) -> None:
    """A GPT-2-style model with 10 M parameters beside its word table."""
    text = shared_data() / "corpora" / corpus
    # Characters are written as they stand, white space too.
    is_exact = tokenizer == "character"
    vocabulary, shards, run = (book.folder / name for name in ("vocab", "shards", "run"))
    book.run(
        "scripts/build_vocab.py",
        f"tokenizer={tokenizer}",
        f"corpus.path={text}",
        f"output={vocabulary}",
        "vocab_size=4000",
        "overwrite=true",
        *(EXACT if is_exact else ()),
    )
    files = {"character": ("vocab.txt",), "bpe": ("vocab.json", "merges.txt")}[tokenizer]
    keys = [
        f"tokenizer.{key}={vocabulary / f}"
        for key, f in zip(("vocab", "merges"), files, strict=False)
    ]
    book.run(
        "preprocess.py",
        f"tokenizer={tokenizer}",
        *keys,
        f"corpus.path={text}",
        f"output={shards}",
        "overwrite=true",
        *(EXACT[1:] if is_exact else ()),
    )
    seconds = book.run(
        "pretrain.py",
        "model=gpt2/mini",
        f"data.path={shards}",
        f"run_dir={run}",
        f"seed={seeds[0]}",
        "data.holdout=0.1",
        "trainer.batch_size=8",
        f"trainer.steps={steps}",
        f"trainer.eval_every={steps // 10}",
        "data.dev_examples=80",
        f"checkpoint.every={steps // 2}",
        "optim.lr=1e-3",
        "optim.beta2=0.99",
        "optim.weight_decay=0.1",
        "model.encoder.dropout=0.1",
        "schedule=cosine",
        "schedule.final=0.1",
    )
    book.rows += ["|---|---|"]
    book.rows += [f"| {step} | {loss:.4f} |" for step, loss in book.values(run, "eval/loss")]
    book.rows += ["", f"Training took {seconds:.0f} s."]
    book.write("| step | validation loss (nats a token) |")


def shakespeare(book: Notebook, seeds: list[int]) -> None:
    language_model(book, "tinyshakespeare_en.txt", "character", 1500, seeds)


def wikitext(book: Notebook, seeds: list[int]) -> None:
    language_model(book, "wikitext2_en.txt", "bpe", 300, seeds)


EXPERIMENTS = {
    function.__name__: function
    for function in (chnsenticorp, rt_polarity, msra, shakespeare, wikitext)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    book = Notebook(options.experiment, options.output.absolute())
    EXPERIMENTS[options.experiment](book, options.seeds)


if __name__ == "__main__":
    main()
