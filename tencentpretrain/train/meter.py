"""Metrics between two log lines: sums on the device, read once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from tencentpretrain.types import Batch, Ratio, TargetOutput

if TYPE_CHECKING:
    from tencentpretrain.distributed.parallel import Parallel


PARTS: Final = ("total", "count")


class Meter:
    """Adds losses and metrics of many steps without asking the device for a value.

    Args:
        weights: Factor of each target in the total loss.
        prefix: Put before each name, such as "train" or "eval".
    """

    def __init__(self, weights: dict[str, float], prefix: str, device: torch.device) -> None:
        self.weights = weights
        self.prefix = prefix
        self.device = device
        self.reset()

    def reset(self) -> None:
        self.losses: dict[str, Ratio] = {}
        self.metrics: dict[str, Ratio] = {}

    def empty(self) -> None:
        """Set all sums to zero; their names stay, which all ranks must have alike."""
        for ratios in (self.losses, self.metrics):
            for name, ratio in ratios.items():
                ratios[name] = Ratio(*map(torch.zeros_like, (ratio.total, ratio.count)))

    def add(self, output: TargetOutput, keep: Tensor | None = None) -> None:
        """Add sums; `keep` [] bool says on the device whether they count at all."""
        for mine, theirs in ((self.losses, output.losses), (self.metrics, output.metrics)):
            for name, ratio in theirs.items():
                total, count = ratio.total.detach().double(), ratio.count.detach().double()
                if keep is not None:
                    total, count = total.where(keep, 0.0), count.where(keep, 0.0)
                added = Ratio(total, count)
                mine[name] = mine[name] + added if name in mine else added

    def over(self, parallel: Parallel) -> Meter:
        """The same sums over all ranks of data, which must have counted the same names."""
        groups = {"losses": self.losses, "metrics": self.metrics}
        parts = {
            f"{group}/{name}/{part}": getattr(ratio, part)
            for group, ratios in groups.items()
            for name, ratio in ratios.items()
            for part in PARTS
        }
        sums = parallel.sum(parts)
        together = Meter(self.weights, self.prefix, self.device)
        for group, ratios in groups.items():
            found = {n: Ratio(*(sums[f"{group}/{n}/{p}"] for p in PARTS)) for n in ratios}
            setattr(together, group, found)
        return together

    def read(self) -> dict[str, float]:
        """All values by prefixed name, in one transfer from the device."""
        names = [*self.losses, *self.metrics]
        if not names:
            return {}
        ratios = [*self.losses.values(), *self.metrics.values()]
        values = torch.stack([ratio.value for ratio in ratios]).tolist()
        named = dict(zip(names, values, strict=True))
        loss = sum(self.weights[name] * named[name] for name in self.losses)
        record = {f"{self.prefix}/loss": loss}
        if len(self.losses) > 1:
            record |= {f"{self.prefix}/{name}/loss": named[name] for name in self.losses}
        return record | {f"{self.prefix}/{name}": named[name] for name in self.metrics}

    def state_dict(self) -> dict[str, Any]:
        groups = {"losses": self.losses, "metrics": self.metrics}
        return {
            group: {name: [r.total.item(), r.count.item()] for name, r in ratios.items()}
            for group, ratios in groups.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        def restore(pairs: dict[str, list[float]]) -> dict[str, Ratio]:
            return {
                name: Ratio(*torch.tensor(pair, dtype=torch.float64, device=self.device))
                for name, pair in pairs.items()
            }

        self.losses, self.metrics = restore(state["losses"]), restore(state["metrics"])


class Speed:
    """What was done in a second since the last reading, and how the time was spent.

    The tokens are the valid ones; the share of the peak is that of the hardware's arithmetic, and
    the share of waiting that in which there was no batch to work on.
    """

    def __init__(self, peak: float | None) -> None:
        self.peak = peak
        self.start()

    def start(self) -> None:
        self.began = time.perf_counter()
        self.tokens, self.flops, self.steps, self.examples = 0, 0.0, 0, 0
        self.waited = 0.0

    def next(self, batches: Iterator[list[Batch]]) -> list[Batch]:
        """The next of `batches`; the time that it takes to come is counted."""
        began = time.perf_counter()
        micros = next(batches)
        self.waited += time.perf_counter() - began
        return micros

    def add(self, tokens: int, flops: float, examples: int) -> None:
        self.tokens += tokens
        self.examples += examples
        self.flops += flops
        self.steps += 1

    def read(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.began, 1e-9)
        record = {
            "perf/tokens_per_s": self.tokens / seconds,
            "perf/examples_per_s": self.examples / seconds,
            "perf/data_wait": self.waited / seconds,
            "perf/steps_per_s": self.steps / seconds,
        }
        if self.peak is not None:
            record["perf/peak_share"] = self.flops / seconds / self.peak
        self.start()
        return record
