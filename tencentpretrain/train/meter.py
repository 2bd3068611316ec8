"""Metrics between two log lines: sums on the device, read once."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.types import Ratio, TargetOutput


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

    def add(self, output: TargetOutput, keep: Tensor | None = None) -> None:
        """Add sums; `keep` [] bool says on the device whether they count at all."""
        for mine, theirs in ((self.losses, output.losses), (self.metrics, output.metrics)):
            for name, ratio in theirs.items():
                total, count = ratio.total.detach().double(), ratio.count.detach().double()
                if keep is not None:
                    total, count = total.where(keep, 0.0), count.where(keep, 0.0)
                added = Ratio(total, count)
                mine[name] = mine[name] + added if name in mine else added

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
    """Valid tokens a second, and the share of the hardware's peak, since the last reading."""

    def __init__(self, peak: float | None) -> None:
        self.peak = peak
        self.start()

    def start(self) -> None:
        self.began = time.perf_counter()
        self.tokens, self.flops, self.steps = 0, 0.0, 0

    def add(self, tokens: int, flops: float) -> None:
        self.tokens += tokens
        self.flops += flops
        self.steps += 1

    def read(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.began, 1e-9)
        record = {
            "perf/tokens_per_s": self.tokens / seconds,
            "perf/steps_per_s": self.steps / seconds,
        }
        if self.peak is not None:
            record["perf/peak_share"] = self.flops / seconds / self.peak
        self.start()
        return record
