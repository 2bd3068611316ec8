"""Speed of a training step: the trainer against a bare loop and against `transformers`' Trainer.

`python -m benchmarks.train_step [--model bert] [--precision fp32 bf16] [--rounds 9] [--steps 4]`

Models of 4 layers and width 256: BERT (batch 32 x 128), GPT-2 (8 x 256) or T5 (32 x 128);
google_zh vocabulary, real documents, dropout 0.1. Or ViT small: 8 images of CIFAR-10, of which
random parts are made 224 x 224; the trainer decodes them on the way. The contestants take turns in
one process, a few steps at a time, and the ratio of neighbouring turns is reported as a median, so
that a machine whose speed drifts gives the same answer. Tokens do not count padding.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.cases import CASES, Case
from benchmarks.common import shared_data, write_result
from tencentpretrain.commands import COMMANDS
from tencentpretrain.configure import load_config
from tencentpretrain.data.loader import Loader
from tencentpretrain.data.objectives.base import OBJECTIVES, NoVocabulary, Objective
from tencentpretrain.data.preprocess import run_preprocess
from tencentpretrain.data.shards import open_shards
from tencentpretrain.distributed.parallel import PARALLELS
from tencentpretrain.model import build_model
from tencentpretrain.train.host_memory import keep_freed_memory
from tencentpretrain.train.optim import OPTIMIZERS
from tencentpretrain.train.precision import autocast
from tencentpretrain.train.pretrain import PretrainConfig
from tencentpretrain.train.schedule import SCHEDULES
from tencentpretrain.train.trainer import Trainer
from tencentpretrain.types import Batch

Turn = Callable[[int], int]
"""Does a number of steps and returns how many tokens they read."""


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
    keep_freed_memory()  # as `Trainer.fit` does; the others gain by it, too

    def turn(steps: int) -> int:
        before = trainer.all_tokens()
        for _ in range(steps):
            micros = next(batches)
            trainer.account(trainer.train_step(micros), micros)
            trainer.step += 1
            if trainer.step % config.trainer.log_every == 0:
                trainer.log()
        return trainer.all_tokens() - before

    turn.dtype, turn.device = trainer.dtype, trainer.device  # type: ignore[attr-defined]
    return turn


def bare_turn(
    config: PretrainConfig, batches: list[Batch], vocabulary: int, dtype: torch.dtype
) -> Turn:
    """A loop written by hand over the same modules and batches that are ready."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    """After every few steps of `transformers`' Trainer, gives the others their turns."""

    def __init__(self, others: dict[str, Turn], batches: list[Batch], steps: int) -> None:
        self.others, self.batches, self.steps = others, batches, steps
        self.rates: dict[str, list[float]] = {name: [] for name in [*others, "transformers"]}
        self.done = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done += 1
        if self.done % self.steps:
            return
        seconds = time.perf_counter() - self.began if self.done > self.steps else None
        read = [
            self.batches[k % len(self.batches)] for k in range(self.done - self.steps, self.done)
        ]
        if seconds is not None:
            self.rates["transformers"].append(sum(b.tokens for b in read) / seconds)
        for name, turn in self.others.items():
            start = time.perf_counter()
            tokens = turn(self.steps)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if seconds is not None:
                self.rates[name].append(tokens / (time.perf_counter() - start))
        self.began = time.perf_counter()


def compete(
    case: Case, folder: Path, precision: str, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Tokens or images a second of each contestant in each round."""
    config, objective = prepare(case, folder, precision)
    vocabulary = open_shards(folder / "shards").vocab_size
    mine = trainer_turn(config, objective, vocabulary)
    source = iter(Loader(objective, case.batch_size, case.batch_size, seed=0))
    batches = [next(source)[0] for _ in range(16)]
    others = {
        "trainer": mine,
        "bare loop": bare_turn(config, batches, vocabulary, mine.dtype),  # type: ignore[attr-defined]
    }
    referee = Referee(others, batches, steps)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "transformers"),
        per_device_train_batch_size=case.batch_size,
        max_steps=(rounds + 1) * steps,
        optim="adamw_torch_fused",
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
    )
    rows = [row for batch in batches for row in case.rows(batch)]
    transformers.Trainer(
        case.reference(vocabulary), arguments, train_dataset=rows, callbacks=[referee]
    ).train()
    return referee.rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(CASES), default="bert")
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    lines = [
        f"| precision | contestant | {CASES[options.model].unit}/s (median) | trainer against it |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for precision in options.precision:
            rates = compete(
                CASES[options.model], Path(folder), precision, options.rounds, options.steps
            )
            for name, own in rates.items():
                pairs = zip(rates["trainer"], own, strict=True)
                ratio = statistics.median(mine / theirs for mine, theirs in pairs)
                rate = statistics.median(own)
                lines.append(f"| {precision} | {name} | {rate:,.4g} | {ratio:.2f} |")
    words = f"--model {options.model} --precision {' '.join(options.precision)}"
    write_result(f"train_step_{options.model}", f"python -m benchmarks.train_step {words}", lines)


if __name__ == "__main__":
    main()
