import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tencentpretrain.train.meter import Meter, Speed
from tencentpretrain.types import Batch, Ratio, TargetOutput

CPU = torch.device("cpu")


def output(total: float, count: float, correct: float = 0) -> TargetOutput:
    loss = Ratio(torch.tensor(total), torch.tensor(count))
    return TargetOutput({"a": loss}, {"a/accuracy": Ratio(torch.tensor(correct), loss.count)})


def test_a_mean_is_over_all_units_not_of_means() -> None:
    meter = Meter({"a": 1.0}, "train", CPU)
    meter.add(output(10, 1, correct=1))
    meter.add(output(2, 3, correct=0))
    assert meter.read() == {"train/loss": 3.0, "train/a/accuracy": 0.25}


def test_several_losses_are_weighted_and_named() -> None:
    meter = Meter({"a": 1.0, "b": 0.5}, "eval", CPU)
    both = {name: Ratio(torch.tensor(4.0), torch.tensor(2)) for name in ("a", "b")}
    meter.add(TargetOutput(both, {}))
    assert meter.read() == {"eval/loss": 3.0, "eval/a/loss": 2.0, "eval/b/loss": 2.0}


def test_steps_that_do_not_count_leave_no_trace() -> None:
    meter = Meter({"a": 1.0}, "train", CPU)
    meter.add(output(6, 2))
    meter.add(output(float("nan"), 5), keep=torch.tensor(False))
    assert meter.read()["train/loss"] == 3.0


def test_state_comes_back_exactly() -> None:
    first, second = Meter({"a": 1.0}, "train", CPU), Meter({"a": 1.0}, "train", CPU)
    first.add(output(0.1, 3, correct=2))
    second.load_state_dict(first.state_dict())
    first.add(output(1 / 3, 7))
    second.add(output(1 / 3, 7))
    assert first.read() == second.read()


def mixed(**parts: TargetOutput) -> TargetOutput:
    losses = [part.losses["a"] for part in parts.values()]
    return TargetOutput({"a": losses[0] + losses[1]}, {}, parts)


def test_sources_are_told_apart_and_those_without_a_unit_left_out() -> None:
    meter = Meter({"a": 2.0}, "train", CPU)
    meter.add(mixed(news=output(3, 1), books=output(0, 0)))
    assert meter.read() == {"train/loss": 6.0, "train/news/loss": 6.0, "train/news/a/accuracy": 0.0}
    meter.add(mixed(news=output(1, 3), books=output(4, 2)))
    meter.add(mixed(news=output(8, 1), books=output(float("nan"), 1)), keep=torch.tensor(False))
    losses = {name: value for name, value in meter.read().items() if name.endswith("loss")}
    assert losses == {
        "train/loss": pytest.approx(2 * 8 / 6),
        "train/news/loss": 2.0,
        "train/books/loss": 4.0,
    }
    again = Meter({"a": 2.0}, "train", CPU)
    again.add(mixed(other=output(3, 1), more=output(0, 0)))
    again.load_state_dict(meter.state_dict())
    assert again.read() == meter.read()
    again.empty()
    assert again.parts.keys() == meter.parts.keys()
    again.add(mixed(news=output(6, 2), books=output(1, 1)))
    assert again.read()["train/news/loss"] == 6.0


def test_sums_of_sources_are_those_of_all_ranks() -> None:
    class Twice:
        def sum(self, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: 2 * value for name, value in parts.items()}

    meter = Meter({"a": 1.0}, "train", CPU)
    meter.add(mixed(news=output(3, 1), books=output(4, 2)))
    parallel: Any = Twice()
    together = meter.over(parallel)
    assert together.state_dict() == {
        "losses": {"a": [14.0, 6.0]},
        "metrics": {},
        "parts": {
            "news": {"losses": {"a": [6.0, 2.0]}, "metrics": {"a/accuracy": [0.0, 2.0]}},
            "books": {"losses": {"a": [8.0, 4.0]}, "metrics": {"a/accuracy": [0.0, 4.0]}},
        },
    }
    assert together.read() == meter.read()


def test_nothing_counted_is_no_record() -> None:
    assert Meter({}, "train", CPU).read() == {}


def test_peak_share_is_work_over_time_over_peak() -> None:
    speed = Speed(peak=1e3)
    speed.add(tokens=10, flops=500.0, examples=2)
    record = speed.read()
    assert record["perf/peak_share"] == pytest.approx(record["perf/tokens_per_s"] / 20)
    assert "perf/peak_share" not in Speed(None).read()
    assert record["perf/examples_per_s"] == pytest.approx(record["perf/tokens_per_s"] / 5)


def test_waiting_for_batches_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def slow() -> Iterator[list[Batch]]:
        nonlocal now
        while True:
            now += 3
            yield []

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    speed, batches = Speed(None), slow()
    speed.next(batches)
    now += 1
    speed.add(tokens=0, flops=0.0, examples=2)
    assert speed.read()["perf/data_wait"] == pytest.approx(3 / 4)
    now += 1
    assert speed.read()["perf/data_wait"] == 0
