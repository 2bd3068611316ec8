"""Which part of a distribution each divergence repairs first: a student of limited rank.

`python -m benchmarks.methods.akl_toy [--seeds 0 1 2 3 4] [--steps 400]`

256 positions over 200 outcomes. The teacher's logits fall with the logarithm of a rank, in an order
of each position's own, and are disturbed; the student's are a product of rank 24 and a bias, or,
with --free, a number each. What is reported is the mean sum of |p - q| over the head of the
teacher's distribution (official rule, mass 0.5), over its tail, and over both.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import write_result
from tencentpretrain.config import decode
from tencentpretrain.distill.akl import HeadSearch
from tencentpretrain.distill.divergences import DIVERGENCES, Divergence, divergence_of

OBJECTIVES = ("fkl", "rkl", "mix", "akl")
Gaps = tuple[float, float, float]


@dataclass(frozen=True)
class Toy:
    """Sizes of the problem.

    Args:
        positions: Distributions to be learned.
        outcomes: Of each of them.
        rank: Of the student; None gives it a number for each logit.
        rate: Learning rate of Adam.
    """

    positions: int = 256
    outcomes: int = 200
    rank: int | None = 24
    rate: float = 0.03

    def teacher(self) -> Tensor:
        """Logits [positions, outcomes]."""
        ranks = torch.arange(1, self.outcomes + 1).log() * -1.2
        orders = torch.stack([torch.randperm(self.outcomes) for _ in range(self.positions)])
        return ranks[orders] + torch.randn(self.positions, self.outcomes) * 0.7

    def student(self) -> list[Tensor]:
        """Parameters: two factors and a bias, or the logits."""
        if self.rank is None:
            return [torch.zeros(self.positions, self.outcomes, requires_grad=True)]
        factors = [torch.randn(self.positions, self.rank), torch.randn(self.rank, self.outcomes)]
        parameters = [factor.mul_(0.3).requires_grad_() for factor in factors]
        return [*parameters, torch.zeros(self.outcomes, requires_grad=True)]

    def logits(self, parameters: Sequence[Tensor]) -> Tensor:
        if self.rank is None:
            return parameters[0]
        left, right, bias = parameters
        return left @ right + bias


def named(name: str) -> Divergence:
    return DIVERGENCES.build(decode(DIVERGENCES.config_class(name), {"name": name}))


def gaps(teacher: Tensor, student: Tensor) -> Gaps:
    """Mean gaps in head and tail, and of both together."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    total = (p - q).abs().sum(-1)
    head = HeadSearch(p, q, 0.5, "official").finish().gap
    return float(head.mean()), float((total - head).mean()), float(total.mean())


def learn(toy: Toy, name: str, seed: int, steps: Sequence[int]) -> dict[int, Gaps]:
    """Gaps of a student of `seed` that learns by the divergence `name`, at each of `steps`."""
    torch.manual_seed(seed)
    teacher, parameters = toy.teacher(), toy.student()
    optimizer, chosen, found = torch.optim.Adam(parameters, toy.rate), named(name), {}
    for step in range(1, max(steps) + 1):
        optimizer.zero_grad()
        divergence_of(toy.logits(parameters), teacher, chosen).mean().backward()
        optimizer.step()
        if step in steps:
            with torch.no_grad():
                found[step] = gaps(teacher, toy.logits(parameters))
    return found


def shown(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--free", action="store_true", help="a student without a limited rank")
    options = parser.parse_args()
    toy = Toy(rank=None, rate=0.1) if options.free else Toy()
    steps = sorted({max(1, options.steps // 8), options.steps // 2 or 1, options.steps})
    rows = ["| divergence | step | head gap | tail gap | total gap |", "|---|---|---|---|---|"]
    for name in OBJECTIVES:
        runs = [learn(toy, name, seed, steps) for seed in options.seeds]
        for step in steps:
            cells = [shown(values) for values in zip(*(run[step] for run in runs), strict=True)]
            rows.append(f"| {name} | {step} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    words = f"--seeds {' '.join(map(str, options.seeds))} --steps {options.steps}"
    command = f"python -m benchmarks.methods.akl_toy {words}{' --free' * options.free}"
    write_result("akl_toy_free" if options.free else "akl_toy", command, rows)


if __name__ == "__main__":
    main()
