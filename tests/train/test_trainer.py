import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tencentpretrain.errors import TrainingError
from tencentpretrain.train.callbacks.base import Callback
from tencentpretrain.train.callbacks.logging import JsonLines
from tencentpretrain.train.load import state_tensors
from tencentpretrain.train.optimizer_state import optimizer_tensors
from tencentpretrain.train.trainer import Trainer
from tencentpretrain.types import Batch
from tests.helpers.training import RandomExamples, make_trainer


class Recorder(Callback):
    """Keeps the loss of every step and every record, without timings."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.records: list[dict[str, float]] = []

    def step_end(self, trainer: Trainer) -> None:
        if trainer.record:
            kept = {k: v for k, v in trainer.record.items() if not k.startswith("perf/")}
            self.records.append({"step": trainer.step, **kept})


def everything(trainer: Trainer) -> dict[str, Tensor]:
    weights = {f"model/{k}": v.clone() for k, v in state_tensors(trainer.model).items()}
    state = optimizer_tensors(trainer.optimizer, trainer.model)
    return weights | {f"optimizer/{k}": v.clone() for k, v in state.items()}


def assert_identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("micro", [8, 3])
@pytest.mark.parametrize(
    "stops",
    [[2], [5], [4, 3], [1, 1, 1]],
    ids=["inside an epoch", "at its border", "twice", "three times"],
)
def test_d22_a_resumed_run_equals_one_that_never_stopped(
    tmp_path: Path, stops: list[int], micro: int
) -> None:
    # 20 examples and batches of 8: five steps are two epochs.
    whole = Recorder()
    trainer = make_trainer(callbacks=[whole], micro_batch_size=micro)
    trainer.fit()
    expected = everything(trainer)

    parts = Recorder()
    for stop in [*stops, None]:
        keys: dict[str, Any] = {"micro_batch_size": micro, "stop_after": stop, "every": 3}
        trainer = make_trainer(tmp_path, callbacks=[parts], **keys)
        trainer.fit()
    assert trainer.step == 10
    assert_identical(everything(trainer), expected)
    assert parts.records == whole.records


def test_stop_after_counts_the_steps_of_this_process(tmp_path: Path) -> None:
    for expected in (4, 8, 10):
        trainer = make_trainer(tmp_path, stop_after=4)
        trainer.fit()
        assert trainer.step == expected
    assert trainer.stop_reason is None


@pytest.mark.parametrize("micro", [8, 4, 2, 1, 3])
def test_d13_the_step_does_not_depend_on_micro_batches(micro: int) -> None:
    whole = make_trainer(dropout=0.0, steps=3, optim={"name": "sgd", "lr": 0.5})
    cut = make_trainer(
        dropout=0.0, steps=3, optim={"name": "sgd", "lr": 0.5}, micro_batch_size=micro
    )
    for trainer in (whole, cut):
        trainer.fit()
    torch.testing.assert_close(everything(cut), everything(whole), rtol=0, atol=1e-6)


def test_the_loss_is_over_all_supervised_units_of_the_step() -> None:
    trainer = make_trainer(dropout=0.0, micro_batch_size=2, steps=1, optim={"name": "sgd"})
    micros = next(iter(trainer.loader))
    whole = trainer.loader.examples.collate(
        [trainer.loader.examples.make(*sample) for sample in trainer.loader.step_samples(0)]
    )
    outputs = trainer.train_step(micros).outputs
    assert sum(b.labels["mlm"].values.numel() for b in micros) == len(whole.labels["mlm"].values)
    counts = [output.losses["mlm"].count.item() for output in outputs]
    assert len(set(counts)) > 1


def test_dropout_is_a_function_of_seed_and_step() -> None:
    losses = []
    for seed in (0, 0, 1):
        trainer = make_trainer(seed=seed, steps=1)
        torch.manual_seed(1234 + len(losses))
        stats = trainer.train_step(next(iter(trainer.loader)))
        losses.append(stats.outputs[0].losses["mlm"].total.item())
    assert losses[0] == losses[1] != losses[2]


def test_d14_ranks_drop_different_units() -> None:
    losses = []
    for rank in (0, 0, 1):
        trainer = make_trainer(steps=1)
        micros = next(iter(trainer.loader))
        trainer.parallel.rank = rank
        losses.append(trainer.train_step(micros).outputs[0].losses["mlm"].total.item())
    assert losses[0] == losses[1] != losses[2]


def test_d82_gradients_are_exchanged_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, said = make_trainer(steps=2, micro_batch_size=3), []
    monkeypatch.setattr(trainer.parallel, "sync", lambda model, is_last: said.append(is_last))
    trainer.fit()
    assert said == 2 * [False, False, True]


class Poison(Callback):
    """Makes the gradients of chosen steps infinite, the first time that they are done."""

    def __init__(self, *steps: int) -> None:
        self.steps = list(steps)

    def before_optimizer_step(self, trainer: Trainer) -> None:
        if trainer.step in self.steps:
            self.steps.remove(trainer.step)
            next(p for p in trainer.model.parameters() if p.grad is not None).grad[0] = torch.inf


def test_raise_names_the_way_out_and_keeps_good_checkpoints(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, every=2, callbacks=[Poison(4)])
    with pytest.raises(TrainingError, match=r"not finite in 1 step.*trainer.nonfinite=skip"):
        trainer.fit()
    assert all(torch.isfinite(tensor).all() for tensor in everything(trainer).values())
    trainer = make_trainer(tmp_path, every=2)
    assert trainer.step == 4
    trainer.fit()
    assert trainer.step == 10


def test_skip_leaves_the_weights_alone_and_counts(tmp_path: Path) -> None:
    recorder = Recorder()

    class Watch(Callback):
        order = 99

        def step_end(self, trainer: Trainer) -> None:
            states.append(everything(trainer))

    states: list[dict[str, Tensor]] = []
    trainer = make_trainer(nonfinite="skip", callbacks=[Poison(4, 5), recorder, Watch()])
    trainer.fit()
    assert_identical(states[3], states[4])
    assert_identical(states[3], states[5])
    assert not torch.equal(*(s["model/embedding.word.weight"] for s in states[5:7]))
    assert recorder.records[-1]["train/skipped_steps"] == 2
    assert all(torch.isfinite(torch.tensor(r["train/loss"])) for r in recorder.records)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_skipping_the_first_step_is_like_not_doing_it(name: str) -> None:
    optim = {"name": name, "lr": 0.01}
    skipped = make_trainer(nonfinite="skip", callbacks=[Poison(0)], optim=optim, steps=4)
    before = everything(skipped)
    micros = next(iter(skipped.loader))
    skipped.train_step(micros)
    weights = {k: v for k, v in everything(skipped).items() if k.startswith("model")}
    assert_identical(weights, {k: before[k] for k in weights})
    skipped.step = 1
    skipped.train_step(micros)
    moved = [(everything(skipped)[k] - before[k]).abs().max().item() for k in weights]
    assert 0 < max(moved) < 1


def test_rollback_goes_back_and_on_with_other_batches(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, every=2, nonfinite="rollback", callbacks=[Poison(7)])
    trainer.fit()
    assert trainer.step == 10
    assert trainer.rollbacks == 1
    # The poison of step 8 is found by the log at step 9, and step 8 was not saved: training goes
    # on from step 6 with the tenth batch.
    assert trainer.loader.samples == 8 * (9 + 4)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_steps_that_were_not_finite_are_not_forgotten_by_a_restart(
    tmp_path: Path, policy: str
) -> None:
    keys: dict[str, Any] = {"nonfinite": policy, "log_every": 5, "every": 3, "steps": 12}
    whole = make_trainer(tmp_path / "whole", callbacks=[Poison(1)], **keys)
    whole.fit()
    poison = Poison(1)
    for stop in (3, None):
        trainer = make_trainer(tmp_path / "parts", callbacks=[poison], stop_after=stop, **keys)
        trainer.fit()
    assert (trainer.skipped, trainer.rollbacks) == (whole.skipped, whole.rollbacks)
    assert trainer.skipped == 1


def test_a_rollback_at_the_end_of_a_process_is_saved(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"nonfinite": "rollback", "log_every": 5, "every": 100, "steps": 12}
    trainer = make_trainer(tmp_path, callbacks=[Poison(2)], stop_after=5, **keys)
    trainer.fit()
    assert (trainer.step, trainer.loader.samples) == (0, 40)
    assert make_trainer(tmp_path, **keys).loader.samples == 40


def test_rollback_gives_up_in_the_end(tmp_path: Path) -> None:
    class AlwaysPoison(Poison):
        def before_optimizer_step(self, trainer: Trainer) -> None:
            self.steps = [trainer.step]
            super().before_optimizer_step(trainer)

    trainer = make_trainer(tmp_path, steps=60, nonfinite="rollback", callbacks=[AlwaysPoison()])
    with pytest.raises(TrainingError, match="rolled back 10 times"):
        trainer.fit()


class CountReads(TorchDispatchMode):
    """Counts operations that make the host wait for a device."""

    waiting = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.waiting:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_d80_a_step_never_waits_for_the_device() -> None:
    trainer = make_trainer(steps=20, log_every=7)
    batches = iter(trainer.loader)
    prepared = [next(batches) for _ in range(4)]
    trainer.account(trainer.train_step(prepared[0]), prepared[0])
    with CountReads() as reads:
        for micros in prepared[1:]:
            trainer.account(trainer.train_step(micros), micros)
            trainer.step += 1
    assert reads.found == []
    with CountReads() as reads:
        trainer.log()
    assert reads.found


def test_a_signal_finishes_the_step_saves_and_tells(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def step_start(self, trainer: Trainer) -> None:
            if trainer.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path, callbacks=[Interrupt()])
    trainer.fit()
    assert (trainer.stop_reason, trainer.step) == ("SIGTERM", 5)
    assert signal.getsignal(signal.SIGTERM) is before
    assert make_trainer(tmp_path).step == 5


def test_callbacks_run_in_order_at_every_moment(tmp_path: Path) -> None:
    seen: list[str] = []

    class Late(Callback):
        order = 60

        def step_start(self, trainer: Trainer) -> None:
            seen.append("late start")

        def after_backward(
            self, trainer: Trainer, batch: Batch, units: dict[str, Tensor], is_last: bool
        ) -> None:
            seen.append(f"backward {is_last}")

        def before_optimizer_step(self, trainer: Trainer) -> None:
            assert all(p.grad is not None for p in trainer.model.parameters())
            seen.append("optimizer")

        def checkpoint_saved(self, trainer: Trainer, path: Path) -> None:
            seen.append(path.name)

        def fit_end(self, trainer: Trainer) -> None:
            seen.append("end")

    class Early(Callback):
        order = 1

        def step_start(self, trainer: Trainer) -> None:
            seen.append("early start")

    trainer = make_trainer(tmp_path, steps=1, micro_batch_size=4, callbacks=[Late(), Early()])
    trainer.fit()
    backward = ["backward False", "backward True"]
    assert seen == ["early start", "late start", *backward, "optimizer", "end", "step_00000001"]


def test_metrics_file_of_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    make_trainer(tmp_path, stop_after=5, callbacks=[JsonLines(path)]).fit()
    with path.open("a") as file:
        file.write('{"step": 6, "train/loss": 1.0}\n{"step": 7, "tr')
    make_trainer(tmp_path, callbacks=[JsonLines(path)]).fit()
    steps = [line.split(",")[0] for line in path.read_text().splitlines()]
    assert steps == ['{"step": 3', '{"step": 6', '{"step": 9', '{"step": 10']


def test_d81_gradients_are_clipped_to_the_norm() -> None:
    trainer = make_trainer(
        steps=1,
        max_norm=0.01,
        optim={"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
    )
    before = everything(trainer)
    trainer.train_step(next(iter(trainer.loader)))
    after = everything(trainer)
    moved = torch.stack([(after[k] - before[k]).norm() for k in before if k.startswith("model")])
    # The first of one steps has the full rate: its update is as long as the clipped gradient.
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_examples_may_be_fewer_than_a_batch() -> None:
    trainer = make_trainer(examples=RandomExamples(3), steps=4)
    trainer.fit()
    assert trainer.loader.samples == 32


@pytest.mark.parametrize("sharing", [1, 4])
def test_processes_that_compute_one_batch_share_its_work(sharing: int) -> None:
    trainer = make_trainer()
    trainer.parallel.circle = copy.copy(trainer.parallel.circle)
    trainer.parallel.circle.world = sharing
    micros = next(iter(trainer.loader))
    trainer.account(trainer.train_step(micros), micros)
    assert trainer.speed.flops * sharing == sum(trainer.model.flops(b) for b in micros)
