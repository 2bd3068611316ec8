"""Cost of a step with adapters: ours against `peft` on the same model and modules.

`python -m benchmarks.methods.lora_cost [--model bert/mini] [--batch 32] [--length 128]`

Every contestant trains the same model of ours for classification, adapted in the same modules with
the same rank and dropout by us or by `peft`; the head trains in full. They take turns, a few steps
at a time, and the ratio of neighbouring turns is reported as a median, so that a machine whose
speed drifts gives the same answer. Memory is the peak of the device; on the CPU, where there is no
such count, it is what a step keeps for its backward pass beside parameters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import peft
import torch
from torch import Tensor, nn

from benchmarks.common import write_result
from tencentpretrain.config import decode
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.model_files import find_model, load_inherited, model_folders
from tencentpretrain.train.precision import PrecisionName, autocast, resolve_precision
from tencentpretrain.types import Batch, Labels, Layout, Stream
from tencentpretrain.wrappers import WRAPPERS
from tencentpretrain.wrappers.lora import MODULES

VOCABULARY = 30522
RANK, ALPHA, DROPOUT = 16, 32, 0.05
CONTESTANTS = ("peft lora", "lora", "moslora", "peft dora", "dora", "everything trains")
BESIDE = {"lora": "peft lora", "moslora": "peft lora", "dora": "peft dora"}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(name: str) -> Model:
    """The shipped model `name` with a classifier in the place of its targets."""
    folders = model_folders()
    data = load_inherited(find_model(name, folders), folders)
    head = {"target": {"classify": {"classes": 2}}, "ties": {}, "objective": None}
    return build_model(decode(ModelConfig, {**data, **head}), VOCABULARY, DEVICE).train()


def adapted(contestant: str, model: Model) -> nn.Module:
    """`model` as a contestant adapts it."""
    if contestant == "everything trains":
        return model
    if not contestant.startswith("peft"):
        keys = {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT}
        config = decode(WRAPPERS.config_class(contestant), {"name": contestant, **keys})
        WRAPPERS.build(config).apply(model)
        return model
    pattern = "|".join(module.replace(".", r"\.").replace("*", ".*") for module in MODULES)
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=pattern,
        use_dora=contestant == "peft dora",
    )
    wrapped: nn.Module = peft.get_peft_model(model, config).train()
    for parameter in model.target.parameters():
        parameter.requires_grad_(True)
    return wrapped


def random_batch(rows: int, length: int) -> Batch:
    """Full rows of random ids with two classes."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=draw)
    stream = Stream({"ids": ids}, Layout.of(torch.ones(rows, length, dtype=torch.bool)))
    labels = {"classify": Labels(torch.randint(2, (rows,), generator=draw))}
    return Batch({"src": stream}, labels, rows * length).to(DEVICE)


class Contestant:
    """A model that takes steps."""

    def __init__(self, name: str, model: str, batch: Batch, dtype: torch.dtype) -> None:
        self.model, self.batch, self.dtype = adapted(name, build(model)), batch, dtype
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step(self) -> None:
        with autocast(self.dtype, DEVICE):
            loss = self.model(self.batch).losses["classify"].total
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def turn(self, steps: int) -> float:
        """Seconds of some steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def memory(self) -> int:
        """Bytes at the peak of a step, or kept for the backward pass."""
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            return torch.cuda.max_memory_allocated() - before
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self.model(self.batch).losses["classify"].total
        loss.backward()
        self.optimizer.zero_grad()
        return sum(kept.values())


def table(
    contestants: Mapping[str, Contestant], seconds: Mapping[str, list[float]], steps: int
) -> list[str]:
    """Rows of the result."""
    memory = {name: contestant.memory() for name, contestant in contestants.items()}
    ratio: Callable[[str, str], float] = lambda one, other: statistics.median(  # noqa: E731
        a / b for a, b in zip(seconds[one], seconds[other], strict=True)
    )
    lines = [
        "| contestant | trained | ms a step (median) | of peft's time | MiB | of peft's memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, contestant in contestants.items():
        other = BESIDE.get(name)
        shares = ["", ""]
        if other is not None:
            shares = [f"{ratio(name, other):.2f}", f"{memory[name] / memory[other]:.2f}"]
        milliseconds = 1000 * statistics.median(seconds[name]) / steps
        lines.append(
            f"| {name} | {contestant.trained:,} | {milliseconds:,.0f} | {shares[0]} | "
            f"{memory[name] / 2**20:,.0f} | {shares[1]} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert/mini")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "auto"])
    options = parser.parse_args()
    precision: PrecisionName = options.precision
    dtype = resolve_precision(precision, DEVICE)
    batch = random_batch(options.batch, options.length)
    contestants = {name: Contestant(name, options.model, batch, dtype) for name in CONTESTANTS}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds + 1):
        for name, contestant in contestants.items():
            spent = contestant.turn(options.steps)
            if number:
                seconds[name].append(spent)
    command = (
        f"python -m benchmarks.methods.lora_cost --model {options.model} --batch {options.batch} "
        f"--length {options.length} --precision {options.precision} --rounds {options.rounds}"
    )
    write_result("lora_cost", command, table(contestants, seconds, options.steps))


if __name__ == "__main__":
    main()
