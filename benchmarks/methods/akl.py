"""Divergences on a real task: a GPT-2-style teacher and small students of it.

`python -m benchmarks.methods.akl [--corpus gsm8k] [--seeds 0 1 2] [--steps 300] [--ratio 1.0]`

A teacher learns worked answers to questions (gsm8k) or articles (wikitext2) as a language model.
Students of one size, with the same initial weights and order of data for each seed, learn from it
for as many steps by each divergence, and one from the labels alone. Reported are the cross entropy
on held-out documents, how far the student's distributions there are from the teacher's, and for
gsm8k Rouge-L between greedy answers and the published ones. Only public commands train and write.
The defaults take an hour of one core; a GPU has room for, say, `--teacher_layers 6 --teacher_width
512 --width 192 --vocabulary 4000 --length 256 --teacher_steps 3000 --steps 1500`. What is finished
is not done again, so that the same command goes on after an interruption; other options want
another --output. The toy problem of the same question is `akl_toy`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.common import ROOT, remembered, shared_data
from benchmarks.methods.akl_toy import shown
from benchmarks.quality import Notebook
from tencentpretrain.config import ConfigError
from tencentpretrain.data.loader import evaluation_batches
from tencentpretrain.data.objectives.base import OBJECTIVES
from tencentpretrain.data.shards import open_shards
from tencentpretrain.distill.akl import AdaptiveKl
from tencentpretrain.distill.divergences import DIVERGENCES
from tencentpretrain.distill.outcomes import Outcomes
from tencentpretrain.tools.saved_model import SavedModel, read_model
from tencentpretrain.train.saved_checkpoint import open_checkpoint

TEACHER = "teacher"
STUDENTS = ("labels", "fkl", "rkl", "mix", "akl", "akl cover")
FIGURES = ("ce", "head_gap", "tail_gap", "fkl", "rkl", "head_weight")
ANSWER = " Answer:"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write_corpus(folder: Path, corpus: str) -> tuple[Path, Path, Path | None]:
    """Files with a document a line to train and to evaluate on, and one with prompts."""
    train, dev, prompts = (folder / name for name in ("train.txt", "dev.txt", "prompts.txt"))
    if corpus == "wikitext2":
        text = (shared_data() / "corpora" / "wikitext2_en.txt").read_text(encoding="utf-8")
        lines = [line.strip() for line in text.splitlines() if len(line) > 80]
        train.write_text("\n".join(lines[: -len(lines) // 10]) + "\n", encoding="utf-8")
        dev.write_text("\n".join(lines[-len(lines) // 10 :]) + "\n", encoding="utf-8")
        return train, dev, None
    for path, part in ((train, "train"), (dev, "test")):
        pairs = [f"{question}{ANSWER} {answer}" for question, answer in gsm8k(part)]
        path.write_text("\n".join(pairs) + "\n", encoding="utf-8")
    questions = [f"{question}{ANSWER}" for question, _ in gsm8k("test")]
    prompts.write_text("\n".join(questions) + "\n", encoding="utf-8")
    return train, dev, prompts


def gsm8k(part: str) -> Iterator[tuple[str, str]]:
    """Questions and answers, each on one line."""
    path = shared_data() / "instruction" / f"gsm8k_{part}.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        yield " ".join(record["question"].split()), " ".join(record["answer"].split())


def rouge_l(written: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004, section 3)."""
    one, other = written.lower().split(), reference.lower().split()
    before = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, match in enumerate(other):
            row.append(before[place] + 1 if word == match else max(before[place + 1], row[-1]))
        before = row
    return 2 * before[-1] / max(1, len(one) + len(other))


def open_model(run: Path) -> SavedModel:
    return read_model(open_checkpoint(run, "latest"), DEVICE)


def held_out(run: Path, teacher: Path, shards: Path, rows: int) -> dict[str, float]:
    """Means over the positions of the first `rows` rows of `shards`."""
    saved, theirs = open_model(run), open_model(teacher)
    objective = saved.config.objective
    if objective is None:
        raise ConfigError.at("objective", "is that of a pre-trained model")
    documents = open_shards(shards)
    examples = OBJECTIVES.build(objective, documents, documents.tokenizer(), 0)
    adaptive = DIVERGENCES.build(DIVERGENCES.default("akl"))
    assert isinstance(adaptive, AdaptiveKl)
    sums, count = dict.fromkeys(FIGURES, 0.0), 0
    with torch.no_grad():
        for batch in evaluation_batches(examples, 8, min(rows, len(examples))):
            batch = batch.to(DEVICE)
            teachers, students = (
                one.model.target["lm"].logits(one.model.encode(batch), batch)
                for one in (theirs, saved)
            )
            outcomes = Outcomes.of_logits(teachers, students)
            labels = batch.labels["lm"].values.flatten()
            ce = torch.nn.functional.cross_entropy(students, labels, reduction="sum")
            found = {"ce": ce, "fkl": outcomes.fkl.sum(), "rkl": outcomes.rkl.sum()}
            details = adaptive.measure(outcomes).details
            found |= {name: details[name].sum() for name in FIGURES if name in details}
            for name in FIGURES:
                sums[name] += float(found[name])
            count += len(labels)
    return {name: total / count for name, total in sums.items()}


class Experiment:
    """Runs of one teacher and its students.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.book = Notebook(f"akl_{options.corpus}", options.output.absolute())
        self.folder = self.book.folder
        self.train, self.dev, self.prompts = write_corpus(self.folder, options.corpus)

    def prepare(self) -> None:
        """Vocabulary, shards and the teacher."""
        run, folder, options = self.book.run, self.folder, self.options
        lines = "corpus.format=lines"
        vocabulary = folder / "vocab"
        words = (f"corpus.path={self.train}", f"output={vocabulary}", lines)
        size = f"vocab_size={options.vocabulary}"
        run("scripts/build_vocab.py", "tokenizer=bpe", size, *words, makes=vocabulary)
        for name, path in (("train", self.train), ("dev", self.dev)):
            shards = folder / f"shards_{name}"
            words = (f"corpus.path={path}", f"output={shards}", lines)
            vocab = f"tokenizer.vocab={vocabulary}"
            run("preprocess.py", "tokenizer=bpe", vocab, *words, makes=shards)

    def sizes(self, layers: int, width: int) -> list[str]:
        encoder = f"{{layers: {layers}, heads: {max(1, width // 64)}, ffn: {4 * width}}}"
        return [f"model.hidden={width}", f"model.encoder={encoder}"]

    def words(self, kind: str, seed: int) -> list[str]:
        """What `pretrain.py` is told for a kind of student, or for the teacher."""
        options = self.options
        is_teacher = kind == TEACHER
        steps = options.teacher_steps if is_teacher else options.steps
        layers = options.teacher_layers if is_teacher else options.layers
        width = options.teacher_width if is_teacher else options.width
        words = [
            "model=gpt2/mini",
            f"model.objective.length={options.length}",
            f"data.path={self.folder / 'shards_train'}",
            f"data.dev={self.folder / 'shards_dev'}",
            "data.dev_examples=100",
            f"seed={seed}",
            f"trainer.steps={steps}",
            f"trainer.batch_size={options.batch}",
            f"trainer.eval_every={steps}",
            f"optim.lr={options.rate}",
            "schedule=cosine",
            *self.sizes(layers, width),
        ]
        if not is_teacher and kind != "labels":
            divergence, _, rule = kind.partition(" ")
            words += ["model.target.lm.name=distill"]
            words += [f"model.target.lm.teacher={self.folder / TEACHER}"]
            words += [f"model.target.lm.divergence.name={divergence}"]
            words += [f"model.target.lm.ratio={options.ratio}"]
            words += [f"model.target.lm.divergence.head_rule={rule}"] if rule else []
        return words

    def figures(self, kind: str, seed: int) -> dict[str, float]:
        """Train a student of a kind, or the teacher, and measure it."""
        options, teacher = self.options, self.folder / TEACHER
        is_teacher = kind == TEACHER
        run_dir = teacher if is_teacher else self.folder / f"{kind.replace(' ', '_')}_{seed}"
        words, kept = self.words(kind, seed), run_dir / "figures.json"
        key = [*words, *self.words(TEACHER, 0), f"{options.rows} rows, {options.answers} answers"]

        def measure() -> dict[str, float]:
            self.book.run("pretrain.py", *words, f"run_dir={run_dir}")
            found = held_out(run_dir, teacher, self.folder / "shards_dev", options.rows)
            if self.prompts is not None:
                found["rouge_l"] = self.rouge(run_dir)
            return found

        return remembered(kept, key, measure)

    def rouge(self, run_dir: Path) -> float:
        """Mean Rouge-L of greedy answers to the first questions, in percent."""
        assert self.prompts is not None
        count, output = self.options.answers, run_dir / "answers.jsonl"
        questions = self.prompts.read_text(encoding="utf-8").splitlines()[:count]
        few = run_dir / "prompts.jsonl"
        few.write_text("\n".join(json.dumps({"prompt": q}) for q in questions) + "\n")
        words = (f"checkpoint={run_dir}", f"input={few}", f"output={output}", "overwrite=true")
        self.book.run("scripts/generate.py", *words, "max_new_tokens=96")
        lines = output.read_text(encoding="utf-8").splitlines()
        answers = [answer for _, answer in gsm8k("test")][:count]
        scores = [
            rouge_l(json.loads(line)["text"], answer)
            for line, answer in zip(lines, answers, strict=True)
        ]
        return 100 * sum(scores) / len(scores)

    def run(self, kinds: Sequence[str]) -> None:
        """Train and measure seed by seed, so that what is there at any time is paired."""
        self.prepare()
        names = [*FIGURES, *(["rouge_l"] if self.prompts is not None else [])]
        heading = f"| model | seeds | {' | '.join(names)} |"
        found = {TEACHER: [self.figures(TEACHER, 0)]}
        for seed in self.options.seeds:
            for kind in kinds:
                found.setdefault(kind, []).append(self.figures(kind, seed))
            self.book.rows = ["|---" * (len(names) + 2) + "|"]
            for kind, runs in found.items():
                cells = [shown([run[name] for run in runs]) for name in names]
                self.book.rows.append(f"| {kind} | {len(runs)} | {' | '.join(cells)} |")
            self.book.write(heading)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", choices=("gsm8k", "wikitext2"), default="gsm8k")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=STUDENTS[:-1])
    parser.add_argument("--ratio", type=float, default=1.0, help="of the soft loss")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of all")
    for name, value in (("steps", 300), ("teacher_steps", 1000), ("batch", 16), ("length", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("layers", 2), ("width", 128), ("vocabulary", 2000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("teacher_layers", 4), ("teacher_width", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rows", type=int, default=400, help="held-out rows to compare on")
    parser.add_argument("--answers", type=int, default=100, help="questions to answer")
    options = parser.parse_args()
    Experiment(options).run(options.students)


if __name__ == "__main__":
    main()
