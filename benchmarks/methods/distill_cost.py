"""Cost of learning from a teacher: a step beside its parts, and memory beside the plain formula.

`python -m benchmarks.methods.distill_cost [--divergences akl fkl] [--batch 2] [--length 128]`
`python -m benchmarks.methods.distill_cost --memory [--vocabulary 128000] [--positions 2048]`

The first compares a distillation step with a forward pass of the teacher, logits at the supervised
positions included, and a step of the student without a teacher. They take turns, and the ratio of
neighbouring turns is reported as a median, so that a machine whose speed drifts gives the same
answer. The second runs the adaptive divergence over output layers alone, in chunks and as its
formula is written, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import ROOT, write_result
from benchmarks.lm_memory import peak_bytes
from tencentpretrain.config import decode
from tencentpretrain.distill.answers import StatesAnswer, Teaching, add_teaching
from tencentpretrain.distill.divergences import DIVERGENCES, Divergence
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.model_files import find_model, load_inherited, model_folders
from tencentpretrain.targets.lm import LmTarget
from tencentpretrain.targets.soft_loss import Head, Terms, distillation_loss
from tencentpretrain.train.precision import autocast, resolve_precision
from tencentpretrain.types import Batch, Labels, Layout, Stream

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCABULARY = 50257


def build(layers: int, width: int, divergence: str | None = None) -> Model:
    """A GPT-2 of a size, maybe with a teacher."""
    data = load_inherited(find_model("gpt2/mini", model_folders()), model_folders())
    data["hidden"] = width
    data["encoder"] |= {"layers": layers, "heads": width // 64, "ffn": 4 * width}
    if divergence is not None:
        keys = {"name": "distill", "teacher": "there", "divergence": divergence}
        data["target"] = {"lm": keys}
    return build_model(decode(ModelConfig, data), VOCABULARY, DEVICE).train()


def random_batch(rows: int, length: int) -> Batch:
    ids = torch.randint(VOCABULARY, (rows, length), device=DEVICE)
    layout = Layout(torch.ones_like(ids, dtype=torch.bool))
    return Batch({"src": Stream({"ids": ids}, layout)}, {"lm": Labels(ids.roll(-1, 1))})


class Teaches:
    """A teacher's forward pass; its logits, too, where nobody else computes them."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.model = model.eval().requires_grad_(False)
        # As sure of itself as a trained model: 3 nats of entropy.
        self.model.get_parameter("embedding.word.weight").mul_(8)
        self.model.to(dtype)

    def __call__(self, batch: Batch, with_logits: bool = False) -> Batch:
        target = self.model.target["lm"]
        assert isinstance(target, LmTarget)
        with torch.no_grad(), autocast(self.dtype, DEVICE):
            states = target.transform(self.model.encode(batch), batch)
            head = target.output
            if with_logits:
                for part in states.split(512):
                    head(part)
        answer = StatesAnswer(states, head.weight, head.bias)
        return add_teaching(batch, {"lm": Teaching(answer)})


def step(model: Model, batch: Batch, dtype: torch.dtype) -> None:
    with autocast(dtype, DEVICE):
        loss = model(batch).losses["lm"].value
    loss.backward()
    model.zero_grad()


def timed(function: Callable[[], Any]) -> float:
    """Seconds; of a CPU those that were spent on this process, whoever else has it meanwhile."""
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    start = clock()
    function()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def compare_steps(options: argparse.Namespace) -> None:
    rows = [
        "| products in | divergence | teacher + student | distillation | ratio |",
        "|---|---|---|---|---|",
    ]
    for precision in options.precision:
        dtype = resolve_precision(precision, DEVICE)
        teacher = Teaches(build(options.teacher_layers, options.teacher_width), dtype)
        for name in options.divergences:
            rows.append(f"| {dtype} | {name} | {compared(name, teacher, options)} |")
            print(rows[-1], flush=True)
    words = f"--batch {options.batch} --length {options.length} --layers {options.layers}"
    words += f" --width {options.width} --teacher_layers {options.teacher_layers}"
    words += f" --teacher_width {options.teacher_width} --repeats {options.repeats}"
    words += f" --precision {' '.join(options.precision)}"
    words += f" --divergences {' '.join(options.divergences)}"
    write_result("distill_cost", f"python -m benchmarks.methods.distill_cost {words}", rows)


def compared(name: str, teacher: Teaches, options: argparse.Namespace) -> str:
    """Cells of the table: seconds of the parts and of the whole, and the median of their ratios."""
    plain = build(options.layers, options.width)
    student = build(options.layers, options.width, name)
    batch = random_batch(options.batch, options.length)

    def parts() -> None:
        teacher(batch, with_logits=True)
        step(plain, batch, teacher.dtype)

    def whole() -> None:
        step(student, teacher(batch), teacher.dtype)

    times = [(timed(parts), timed(whole)) for _ in range(options.repeats + 1)][1:]
    ratio = statistics.median(one / other for other, one in times)
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return f"{first:.3f} s | {second:.3f} s | {ratio:.3f}"


def akl() -> Divergence:
    return DIVERGENCES.build(DIVERGENCES.default("akl"))


def plainly(states: Tensor, weight: Tensor, labels: Tensor, answer: StatesAnswer) -> Tensor:
    """Half cross entropy and half adaptive divergence as their formulas are written."""
    assert answer.weight is not None
    logits = F.linear(states, weight)
    with torch.no_grad():
        p = F.linear(answer.states, answer.weight).softmax(-1)
        values, order = torch.sort(p, stable=True, dim=-1, descending=True)
        is_tail = values.cumsum(-1) > 0.5
        is_tail[:, 0] = False
        head = torch.zeros_like(is_tail).scatter(1, order, ~is_tail)
        gaps = (p - logits.softmax(-1)).abs()
        w = (gaps * head).sum(-1) / gaps.sum(-1)
    log_q = logits.log_softmax(-1)
    fkl = (p * (p.log() - log_q)).sum(-1)
    rkl = (log_q.exp() * (log_q - p.log())).sum(-1)
    return 0.5 * F.cross_entropy(logits, labels) + 0.5 * (w * fkl + (1 - w) * rkl).mean()


def measure(way: str, options: argparse.Namespace) -> None:
    """Print memory in bytes and seconds of one way as JSON."""
    vocabulary, positions, width = options.vocabulary, options.positions, options.width
    states = torch.randn(positions, width, device=DEVICE, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=DEVICE).mul_(0.02).requires_grad_()
    labels = torch.randint(vocabulary, (positions,), device=DEVICE)
    answer = StatesAnswer(torch.randn(positions, width, device=DEVICE), weight.detach() * 5)
    states.grad, weight.grad = torch.ones_like(states), torch.ones_like(weight)
    before = peak_bytes()

    def run() -> None:
        if way == "plain":
            plainly(states, weight, labels, answer).backward()
        else:
            loss, _ = distillation_loss(states, Head(weight), labels, answer, Terms(akl()))
            loss.value.backward()

    seconds = timed(run)
    print(json.dumps([peak_bytes() - before, seconds]))


def compare_memory(options: argparse.Namespace) -> None:
    words = [f"--{n}={getattr(options, n)}" for n in ("vocabulary", "positions", "width")]
    command = [sys.executable, "-m", "benchmarks.methods.distill_cost", *words]
    rows = ["| way | peak memory beyond inputs and gradients | seconds |", "|---|---|---|"]
    for way in ("chunks", "plain"):
        output = subprocess.run(
            [*command, f"--way={way}"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        memory, seconds = json.loads(output.splitlines()[-1])
        rows.append(f"| {way} | {memory / 1e6:,.0f} MB | {seconds:.2f} |")
    command_line = "python -m benchmarks.methods.distill_cost --memory " + " ".join(words)
    write_result("distill_memory", command_line, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--divergences", nargs="+", default=["fkl", "rkl", "mix", "jsd", "akl"])
    for name, value in (("batch", 2), ("length", 128), ("layers", 6), ("width", 512)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("teacher_layers", 12), ("teacher_width", 768), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    precisions = ("auto", "fp32", "bf16")
    parser.add_argument("--precision", nargs="+", choices=precisions, default=["auto"])
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--way", choices=("chunks", "plain"), help="measure memory in this process")
    options = parser.parse_args()
    if options.way:
        measure(options.way, options)
    elif options.memory:
        compare_memory(options)
    else:
        compare_steps(options)


if __name__ == "__main__":
    main()
