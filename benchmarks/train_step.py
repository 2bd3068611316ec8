"""Speed of a training step: the trainer against a bare loop and against `transformers`' Trainer.

`python -m benchmarks.train_step [--model bert] [--precision fp32 bf16] [--batch-size 32]`

Models of 4 layers and width 256: BERT (batch 32 x 128), GPT-2 (8 x 256) or T5 (32 x 128);
google_zh vocabulary, real documents, dropout 0.1. Or ViT small: 8 images of CIFAR-10, of which
random parts are made 224 x 224; the trainer decodes them on the way. `--batch-size` gives other
numbers of rows. The contestants take turns, a few steps at a time (`benchmarks.race`), and the
ratio of neighbouring turns is reported as a median, so that a machine whose speed drifts gives the
same answer. Tokens do not count padding.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.cases import CASES, Case
from benchmarks.common import shared_data, write_result
from benchmarks.race import Turn, answer, compete, finish
from tencentpretrain.commands import COMMANDS
from tencentpretrain.configure import load_config
from tencentpretrain.data.loader import Loader
from tencentpretrain.data.objectives.base import OBJECTIVES, NoVocabulary, Objective
from tencentpretrain.data.preprocess import run_preprocess
from tencentpretrain.data.shards import open_shards
from tencentpretrain.distributed.parallel import PARALLELS
from tencentpretrain.host_memory import tune_host_memory
from tencentpretrain.model import build_model
from tencentpretrain.train.optim import OPTIMIZERS
from tencentpretrain.train.precision import autocast, resolve_precision
from tencentpretrain.train.pretrain import PretrainConfig
from tencentpretrain.train.schedule import SCHEDULES
from tencentpretrain.train.trainer import Trainer
from tencentpretrain.types import Batch


def prepare(case: Case, folder: Path, precision: str) -> tuple[PretrainConfig, Objective]:
    """The config of the run, and its objective over the Chinese corpus or over images."""
    if not (folder / "shards").exists():
        words = image_words() if case.unit == "images" else text_words(case, folder)
        words.append(f"output={folder / 'shards'}")
        run_preprocess(load_config(COMMANDS["preprocess"], words))
    words = [
        *case.words,
        f"data.path={folder / 'shards'}",
        f"run_dir={folder / 'run'}",
        "trainer.steps=1000000",
        f"trainer.batch_size={case.batch_size}",
        f"trainer.precision={precision}",
        "trainer.log_every=10",
    ]
    config = load_config(COMMANDS["pretrain"], words)
    assert isinstance(config, PretrainConfig)
    assert config.model.objective is not None
    shards = open_shards(folder / "shards")
    tokenizer = shards.tokenizer() if shards.has_tokenizer else NoVocabulary()
    return config, OBJECTIVES.build(config.model.objective, shards, tokenizer, 0)


def text_words(case: Case, folder: Path) -> list[str]:
    """Words for preprocess.py with the vocabulary that `case` needs."""
    data = shared_data()
    entries = (data / "vocab" / "google_zh_vocab.txt").read_text(encoding="utf-8").split("\n")
    entries = entries[:-1] + [f"<extra_id_{number}>" for number in range(case.sentinels)]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    corpus = data / "corpora" / "clue_zh.txt"
    vocabulary = f"tokenizer.vocab={folder / 'vocab.txt'}"
    return ["tokenizer=wordpiece", vocabulary, f"corpus.path={corpus}"]


def image_words() -> list[str]:
    """Words for preprocess.py with images of classes."""
    return ["corpus.format=image", f"corpus.path={shared_data() / 'image' / 'cifar10_test.tar'}"]


def trainer_turn(config: PretrainConfig, objective: Objective, vocabulary: int) -> Turn:
    """The toolkit's trainer with its loader: examples are made on the way."""
    parallel = PARALLELS.build(config.parallel)
    tune_host_memory(parallel.device)  # as a run does
    model = build_model(config.model, vocabulary, parallel.device)
    trainer = Trainer(
        model,
        OPTIMIZERS.build(config.optim)(model),
        SCHEDULES.build(config.schedule, 1000),
        Loader(objective, config.trainer.batch_size, config.trainer.batch_size, seed=0),
        config.trainer,
        steps=1000,
        seed=0,
        parallel=parallel,
    )
    batches = iter(trainer.loader)

    def turn(steps: int) -> int:
        before = trainer.all_tokens()
        for _ in range(steps):
            micros = next(batches)
            trainer.account(trainer.train_step(micros), micros)
            trainer.step += 1
            if trainer.step % config.trainer.log_every == 0:
                trainer.log()
        return trainer.all_tokens() - before

    return turn


def bare_turn(
    config: PretrainConfig,
    batches: list[Batch],
    vocabulary: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Turn:
    """A loop written by hand over the same modules and batches that are ready."""
    model = build_model(config.model, vocabulary, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    position = 0

    def turn(steps: int) -> int:
        nonlocal position
        tokens = 0
        for _ in range(steps):
            batch = batches[position % len(batches)].to(device)
            position += 1
            with autocast(dtype, device):
                losses = model(batch).losses.values()
                loss = sum(ratio.total / ratio.count.clamp(min=1) for ratio in losses)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            tokens += batch.tokens
        return tokens

    return turn


class Referee(transformers.TrainerCallback):
    """Lets `transformers`' Trainer go on for a few steps whenever it is asked to."""

    def __init__(self, asked: Connection, batches: list[Batch], steps: int) -> None:
        self.asked, self.batches, self.steps, self.done = asked, batches, steps, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done += 1
        if self.done % self.steps:
            return
        finish()
        seconds = time.perf_counter() - self.began
        steps = range(self.done - self.steps, self.done)
        self.asked.send(sum(self.batches[k % len(self.batches)].tokens for k in steps) / seconds)
        self.wait()

    def wait(self) -> None:
        self.asked.recv()
        self.began = time.perf_counter()


@dataclass(frozen=True)
class Track:
    """What all contestants are given.

    Args:
        case: What is trained.
        folder: With the shards.
        precision: Of the matrix products.
        rounds: How often each is asked.
        steps: For how many at a time.
    """

    case: Case
    folder: Path
    precision: str
    rounds: int
    steps: int


def run_trainer(track: Track, asked: Connection) -> None:
    """The toolkit's trainer."""
    config, objective = prepare(track.case, track.folder, track.precision)
    answer(asked, trainer_turn(config, objective, open_shards(track.folder / "shards").vocab_size))


def run_bare(track: Track, asked: Connection) -> None:
    """The loop written by hand."""
    config, batches, vocabulary = ready(track)
    device = PARALLELS.build(config.parallel).device
    tune_host_memory(device)
    dtype = resolve_precision(config.trainer.precision, device)
    answer(asked, bare_turn(config, batches, vocabulary, dtype, device))


def run_transformers(track: Track, asked: Connection) -> None:
    """The other library's trainer."""
    case = track.case
    _, batches, vocabulary = ready(track)
    arguments = transformers.TrainingArguments(
        output_dir=str(track.folder / "transformers"),
        per_device_train_batch_size=case.batch_size,
        max_steps=(track.rounds + 1) * track.steps,
        optim="adamw_torch_fused",
        bf16=track.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
    )
    transformers.Trainer(
        case.reference(vocabulary),
        arguments,
        train_dataset=[row for batch in batches for row in case.rows(batch)],
        callbacks=[Referee(asked, batches, track.steps)],
    ).train()


CONTESTANTS = {"trainer": run_trainer, "bare loop": run_bare, "transformers": run_transformers}


def ready(track: Track) -> tuple[PretrainConfig, list[Batch], int]:
    """The config, batches that were made before, and the size of the vocabulary."""
    case = track.case
    config, objective = prepare(case, track.folder, track.precision)
    source = iter(Loader(objective, case.batch_size, case.batch_size, seed=0))
    batches = [next(source)[0] for _ in range(16)]
    return config, batches, open_shards(track.folder / "shards").vocab_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(CASES), default="bert")
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, help="rows of a step instead of the case's")
    options = parser.parse_args()
    case = CASES[options.model]
    case = replace(case, batch_size=options.batch_size or case.batch_size)
    lines = [
        f"| precision | contestant | {case.unit}/s (median) | trainer against it |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for precision in options.precision:
            track = Track(case, Path(folder), precision, options.rounds, options.steps)
            prepare(case, track.folder, precision)
            rates = compete(CONTESTANTS, track, track.rounds, track.steps)
            for name, own in rates.items():
                pairs = zip(rates["trainer"], own, strict=True)
                ratio = statistics.median(mine / theirs for mine, theirs in pairs)
                rate = statistics.median(own)
                lines.append(f"| {precision} | {name} | {rate:,.4g} | {ratio:.2f} |")
    rows = f"_{options.batch_size}" if options.batch_size else ""
    command = shlex.join(["python", "-m", "benchmarks.train_step", *sys.argv[1:]])
    write_result(f"train_step_{options.model}{rows}", command, lines)


if __name__ == "__main__":
    main()
