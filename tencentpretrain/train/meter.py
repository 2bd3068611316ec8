"""Metrics between two log lines: sums on the device, read once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from tencentpretrain.types import Batch, Ratio, TargetOutput

if TYPE_CHECKING:
    from tencentpretrain.distributed.parallel import Parallel


VALUES: Final = ("total", "count")


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
        self.parts: dict[str, Meter] = {}
        """Of the rows from each source, where there are several."""

    def empty(self) -> None:
        """Set all sums to zero; their names stay, which all ranks must have alike."""
        for ratios in (self.losses, self.metrics):
            for name, ratio in ratios.items():
                ratios[name] = Ratio(*map(torch.zeros_like, (ratio.total, ratio.count)))
        for part in self.parts.values():
            part.empty()

    def add(self, output: TargetOutput, keep: Tensor | None = None) -> None:
        """Add sums; `keep` [] bool says on the device whether they count at all."""
        for mine, theirs in ((self.losses, output.losses), (self.metrics, output.metrics)):
            for name, ratio in theirs.items():
                total, count = ratio.total.detach().double(), ratio.count.detach().double()
                if keep is not None:
                    total, count = total.where(keep, 0.0), count.where(keep, 0.0)
                added = Ratio(total, count)
                mine[name] = mine[name] + added if name in mine else added
        for name, part in output.parts.items():
            self._part(name).add(part, keep)

    def _part(self, name: str) -> Meter:
        if name not in self.parts:
            self.parts[name] = Meter(self.weights, f"{self.prefix}/{name}", self.device)
        return self.parts[name]

    def over(self, parallel: Parallel) -> Meter:
        """The same sums over all ranks of data, which must have counted the same names."""
        sums = parallel.sum(dict(self._sums("")))
        return self._with(sums, "")

    def _sums(self, path: str) -> Iterator[tuple[str, Tensor]]:
        """All totals and counts, by names below `path`."""
        for group, ratios in (("losses", self.losses), ("metrics", self.metrics)):
            for name, ratio in ratios.items():
                for value in VALUES:
                    yield f"{path}{group}/{name}/{value}", getattr(ratio, value)
        for name, part in self.parts.items():
            yield from part._sums(f"{path}parts/{name}/")

    def _with(self, sums: Mapping[str, Tensor], path: str) -> Meter:
        """A meter with these names and the values of `sums`."""
        other = Meter(self.weights, self.prefix, self.device)
        for group in ("losses", "metrics"):
            found = {
                name: Ratio(*(sums[f"{path}{group}/{name}/{value}"] for value in VALUES))
                for name in getattr(self, group)
            }
            setattr(other, group, found)
        other.parts = {
            name: part._with(sums, f"{path}parts/{name}/") for name, part in self.parts.items()
        }
        return other

    def read(self) -> dict[str, float]:
        """All values by prefixed name, in one transfer from the device.

        Sources of which there was nothing are left out.
        """
        sums = dict(self._sums(""))
        if not sums:
            return {}
        values = torch.stack([value.double() for value in sums.values()]).tolist()
        return self._named(dict(zip(sums, values, strict=True)), "")

    def _named(self, sums: Mapping[str, float], path: str) -> dict[str, float]:
        def value(group: str, name: str) -> float:
            key = f"{path}{group}/{name}/"
            return sums[f"{key}total"] / max(sums[f"{key}count"], 1)

        losses = {name: value("losses", name) for name in self.losses}
        record = {f"{self.prefix}/loss": sum(self.weights[n] * v for n, v in losses.items())}
        if len(losses) > 1:
            record |= {f"{self.prefix}/{name}/loss": loss for name, loss in losses.items()}
        record |= {f"{self.prefix}/{name}": value("metrics", name) for name in self.metrics}
        for name, part in self.parts.items():
            inner = f"{path}parts/{name}/"
            if all(sums[f"{inner}losses/{loss}/count"] for loss in part.losses):
                record |= part._named(sums, inner)
        return record

    def state_dict(self) -> dict[str, Any]:
        groups = {"losses": self.losses, "metrics": self.metrics}
        state: dict[str, Any] = {
            group: {name: [r.total.item(), r.count.item()] for name, r in ratios.items()}
            for group, ratios in groups.items()
        }
        if self.parts:
            state["parts"] = {name: part.state_dict() for name, part in self.parts.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        def restore(pairs: dict[str, list[float]]) -> dict[str, Ratio]:
            return {
                name: Ratio(*torch.tensor(pair, dtype=torch.float64, device=self.device))
                for name, pair in pairs.items()
            }

        self.reset()
        self.losses, self.metrics = restore(state["losses"]), restore(state["metrics"])
        for name, part in state.get("parts", {}).items():
            self._part(name).load_state_dict(part)


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
