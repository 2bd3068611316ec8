"""One of several processes dies, freezes or errs: all end, say why, and the run can go on."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tencentpretrain.distributed.mesh import Mesh
from tencentpretrain.model import Model
from tencentpretrain.train import checkpoint_files, session
from tencentpretrain.train.run_lock import RunLock
from tencentpretrain.train.saved_checkpoint import find_latest
from tencentpretrain.types import Batch, Ratio, TargetOutput
from tests.helpers.launch import launch, messages
from tests.helpers.pretraining import metrics, pretrain, words_of, write_shards

pytestmark = pytest.mark.distributed

VICTIM = 1
KEYS = {"trainer.steps": 6, "checkpoint.every": 2, "trainer.precision": "fp32"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def err() -> None:
    raise ValueError("a mistake in the code")


def after(calls: int, function: Callable[..., Any], harm: Callable[[], None]) -> Callable[..., Any]:
    """`function`, but `harm` is done at the call after so many."""
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            harm()
        return function(*args, **kwargs)

    return call


def in_forward(harm: Callable[[], None]) -> None:
    Model.forward = after(3, Model.forward, harm)  # type: ignore[method-assign]


def in_reduce(harm: Callable[[], None]) -> None:
    dist.all_reduce = after(9, dist.all_reduce, harm)


def in_save(harm: Callable[[], None]) -> None:
    checkpoint_files.write_tensors = after(2, checkpoint_files.write_tensors, harm)  # type: ignore[attr-defined]


def breaking(place: Callable[..., None], harm: Callable[[], None]) -> Callable[[int], None]:
    """What does harm to the one process that is to suffer it."""
    return lambda rank: place(harm) if rank == VICTIM else None


@pytest.mark.parametrize("place", [in_forward, in_reduce, in_save])
def test_a_process_is_killed(place: Callable[..., None], shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*words_of(shards, run, **KEYS), "parallel=fsdp"]
    codes = launch(tmp_path / "log", 2, words, before=breaking(place, die))
    assert codes == [1, -signal.SIGKILL]
    said = messages(tmp_path / "log")["0"]
    assert "error: rank 0 of 2 lost another one while" in said, said
    assert "at step" in said
    assert launch(tmp_path / "log", 2, words) == [0, 0], messages(tmp_path / "log")
    assert_whole(run, shards, tmp_path)


def assert_whole(run: Path, shards: Path, tmp_path: Path) -> None:
    """The run ended as one that nothing happened to."""
    words = [*words_of(shards, tmp_path / "undisturbed", **KEYS), "parallel=fsdp"]
    assert launch(tmp_path / "log", 2, words) == [0, 0], messages(tmp_path / "log")
    assert metrics(run) == metrics(tmp_path / "undisturbed")
    left, right = (find_latest(d / "checkpoints") for d in (run, tmp_path / "undisturbed"))
    assert left is not None
    assert right is not None
    for name, tensor in left.tensors("model").items():
        assert torch.equal(tensor, right.tensors("model")[name]), name


def test_a_process_freezes(shards: Path, tmp_path: Path) -> None:
    words = [*words_of(shards, tmp_path / "run", **KEYS), "parallel=fsdp", "parallel.timeout=4"]
    broken = breaking(in_forward, freeze)
    codes = launch(tmp_path / "log", 2, words, before=broken, frozen=[VICTIM])
    assert codes[0] == 1
    said = messages(tmp_path / "log")["0"]
    assert "rank 0 of 2 lost another one while training" in said, said


def test_a_process_errs(shards: Path, tmp_path: Path) -> None:
    words = [*words_of(shards, tmp_path / "run", **KEYS), "parallel=ddp"]
    codes = launch(tmp_path / "log", 2, words, before=breaking(in_forward, err))
    assert codes == [1, 1]
    said = messages(tmp_path / "log")
    assert "a mistake in the code" in said["1"]
    assert "lost another one while training" in said["0"], said


def test_a_process_cannot_write(shards: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device", "model/00001-of-00002.safetensors")

    words = [*words_of(shards, tmp_path / "run", **KEYS), "parallel=fsdp"]
    codes = launch(tmp_path / "log", 2, words, before=breaking(in_save, fail))
    assert codes == [1, 1]
    said = messages(tmp_path / "log")
    assert "No space left on device" in said["1"]
    assert "failed on rank 1" in said["0"]
    assert "No space left on device" in said["0"]
    left = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert left == ["step_00000002"]


def spoiled(model: Model, batch: Batch) -> TargetOutput:
    """A loss that is not a number."""
    output = FORWARD(model, batch)
    losses = {n: Ratio(r.total * float("nan"), r.count) for n, r in output.losses.items()}
    return TargetOutput(losses, output.metrics)


FORWARD = Model.forward


def spoil_third(rank: int) -> None:
    count = 0

    def forward(model: Model, batch: Batch) -> TargetOutput:
        nonlocal count
        count += 1
        return (spoiled if rank == VICTIM and count == 3 else FORWARD)(model, batch)

    Model.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_loss_of_one_process_is_not_finite(policy: str, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = {**KEYS, "trainer.nonfinite": policy, "trainer.eval_every": 6}
    words = [*words_of(shards, run, **keys), "parallel=ddp"]
    codes = launch(tmp_path / "log", 2, words, before=spoil_third)
    said = messages(tmp_path / "log")
    if policy == "raise":
        assert codes == [1, 1]
        assert all("was not finite in 1 step(s)" in text for text in said.values()), said
        return
    assert codes == [0, 0], said
    assert metrics(run)[-2]["train/skipped_steps"] == 1


def test_a_run_that_is_rolled_back_where_it_ends_is_saved(shards: Path, tmp_path: Path) -> None:
    """The sums of the checkpoint lie on one process, but all must name them to add them up."""
    keys = {**KEYS, "trainer.nonfinite": "rollback", "trainer.eval_every": 6}
    keys |= {"trainer.log_every": 4, "trainer.stop_after": 4, "parallel.timeout": 10}
    words = [*words_of(shards, tmp_path / "run", **keys), "parallel=ddp"]
    codes = launch(tmp_path / "log", 2, words, before=spoil_third)
    assert codes == [0, 0], messages(tmp_path / "log")


def test_a_port_is_in_use(shards: Path, tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        server.listen()
        port = server.getsockname()[1]

        def misplace(rank: int) -> None:
            os.environ["MASTER_PORT"] = str(port)

        words = [*words_of(shards, tmp_path / "run", **KEYS), "parallel=ddp", "parallel.timeout=5"]
        # The other one waits for an answer of what listens there, until its launcher ends it.
        codes = launch(tmp_path / "log", 2, words, before=misplace, frozen=[1])
    said = messages(tmp_path / "log")
    assert codes[0] == 2
    assert f"cannot join the others at localhost:{port}" in said["0"], said


def test_half_an_environment_is_refused(shards: Path, tmp_path: Path) -> None:
    def forget(rank: int) -> None:
        del os.environ["WORLD_SIZE"]

    words = [*words_of(shards, tmp_path / "run", **KEYS), "parallel=ddp"]
    assert launch(tmp_path / "log", 1, words, before=forget) == [2]
    assert "WORLD_SIZE are not" in messages(tmp_path / "log")["0"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["parallel=ddp", "trainer.micro_batch_size=9"], "must be at most batch_size=4"),
        (["parallel=hsdp", "parallel.shard=3"], "= 3 processes, but there are 2"),
        ([], "torchrun has started 2 processes"),
        (["parallel=tp", "model.encoder.heads=1"], "encoder.heads=1 must be a multiple"),
        (["parallel=tp", "wrappers=lora"], "cannot be combined with tensor parallelism"),
        (["parallel=fsdp", "optim=adafactor"], "optim.name=adafactor"),
        (["parallel=fsdp", "parallel.gather=bf16"], "parallel.gather: is bf16, but this run"),
        (["parallel=fsdp", "parallel.offload=true"], "parallel.offload: is for GPUs"),
    ],
)
def test_d61_what_cannot_be_shared_is_refused_before_the_start(
    words: list[str], said: str, shards: Path, tmp_path: Path
) -> None:
    given = [*words_of(shards, tmp_path / "run", **KEYS), *words]
    assert launch(tmp_path / "log", 2, given) == [2, 2]
    assert said in messages(tmp_path / "log")["0"]
    assert not (tmp_path / "run").exists()


def slow(slowest: int, ready: Path) -> Callable[[int], None]:
    """Let one rank be the last to have its groups; the others must not be refused before it."""
    make, check = Mesh._host_group, session.require_equal_shares
    made = []

    def make_slowly(mesh: Mesh) -> Any:
        made.append(make(mesh))
        if len(made) == 2:
            time.sleep(0.3)
            ready.touch()
        return made[-1]

    def look(*numbers: int) -> None:
        assert ready.exists(), "refused while another process still makes groups"
        check(*numbers)

    def before(rank: int) -> None:
        if rank == slowest:
            Mesh._host_group = make_slowly  # type: ignore[method-assign]
        session.require_equal_shares = look  # type: ignore[attr-defined]

    return before


@pytest.mark.parametrize(("size", "slowest"), [(1, 0), (3, 1)])
def test_a_batch_that_processes_cannot_share_is_refused(
    size: int, slowest: int, shards: Path, tmp_path: Path
) -> None:
    """On all processes alike, whichever of them is the last to join."""
    keys = {**KEYS, "trainer.batch_size": size}
    words = [*words_of(shards, tmp_path / "run", **keys), "parallel=ddp"]
    assert launch(tmp_path / "log", 2, words, before=slow(slowest, tmp_path / "ready")) == [2, 2]
    said = messages(tmp_path / "log")["0"]
    assert "trainer.batch_size: must be a multiple of" in said
    assert f"processes, 2, but is {size}" in said
    assert not (tmp_path / "run").exists()


def test_fewer_examples_to_evaluate_than_processes(shards: Path, tmp_path: Path) -> None:
    keys = {**KEYS, "data.dev_examples": 1, "trainer.steps": 2}
    keys |= {"model.embedding.dropout": 0, "model.encoder.dropout": 0}
    words = [*words_of(shards, tmp_path / "two", **keys), "parallel=fsdp"]
    assert launch(tmp_path / "log", 2, words) == [0, 0], messages(tmp_path / "log")
    assert pretrain(shards, tmp_path / "one", **keys, **{"parallel": "none"}) == 0
    one, two = (metrics(tmp_path / name)[-1]["eval/loss"] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-5)


def test_a_second_launch_on_one_directory_is_refused(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*words_of(shards, run, **KEYS), "parallel=ddp"]
    with RunLock(run):
        codes = launch(tmp_path / "log", 2, words)
    assert codes == [1, 1]
    assert f"`{run}` is in use by process {os.getpid()}" in messages(tmp_path / "log")["0"]
