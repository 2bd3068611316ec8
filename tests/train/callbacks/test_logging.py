import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tencentpretrain.train.callbacks.evaluation import Evaluator
from tencentpretrain.train.callbacks.logging import Console, JsonLines, TensorBoard, duration
from tests.helpers.training import make_trainer


def test_the_console_line_is_complete(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    make_trainer(callbacks=[Console()]).fit()
    line = next(record.message for record in caplog.records if "step 3/10" in record.message)
    for part in ("loss ", "mlm acc ", "lr ", "grad ", "tokens/s", "% of peak", "eta 0:0"):
        assert part in line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (90061, "25:01:01")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_values_that_are_not_numbers_stay_valid_json(tmp_path: Path) -> None:
    writer = JsonLines(tmp_path / "metrics.jsonl")
    writer.write(3, {"train/loss": float("nan"), "optim/lr": 0.1})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 3, "train/loss": None, "optim/lr": 0.1}


def test_tensorboard_has_the_numbers_of_the_metrics_file(tmp_path: Path) -> None:
    callbacks = [JsonLines(tmp_path / "metrics.jsonl"), TensorBoard(tmp_path / "events")]
    evaluator = Evaluator(lambda trainer: {"eval/loss": 1.5}, every=5)
    make_trainer(callbacks=[*callbacks, evaluator]).fit()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [(r["step"], r["train/loss"]) for r in records if "train/loss" in r]
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in losses]
    assert [event.step for event in events.Scalars("eval/loss")] == [5, 10]


def test_a_resumed_run_leaves_no_step_twice_in_tensorboard(tmp_path: Path) -> None:
    for stop in (5, None):
        events = TensorBoard(tmp_path / "events")
        make_trainer(tmp_path, stop_after=stop, callbacks=[events]).fit()
    found = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("train/loss")
    assert [event.step for event in found] == [3, 6, 9, 10]
