"""Whenever a process is killed: the newest whole checkpoint is found, nothing needs cleaning."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.errors import UserError
from tencentpretrain.train import durable
from tencentpretrain.train.checkpoint import CheckpointStore, RunLock, open_checkpoint
from tests.helpers.checkpoints import is_consistent, save, two_checkpoints

SIZE = 100_000


class Killed(BaseException):
    """Stands for a kill at a chosen moment: no clean-up runs after it."""


def kill_at(moment: int, patch: pytest.MonkeyPatch, store: CheckpointStore) -> list[str]:
    """Let the call number `moment` that changes the disk raise; returns the calls seen."""
    seen: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(seen) >= moment:
                raise Killed
            seen.append(name)
            return function(*args, **kwargs)

        return call

    for name in ("mkdir", "fsync", "rename", "unlink", "rmdir"):
        patch.setattr(os, name, counted(name, getattr(os, name)))
    patch.setattr(durable, "_exchange", counted("exchange", durable._exchange))
    patch.setattr(store, "_discard", lambda partial: None)
    return seen


@pytest.mark.parametrize("step", [3, 2], ids=["new step", "replaced step"])
def test_d92_a_kill_at_each_single_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Every call that changes the disk is once the last one of its process."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill cannot tell the difference
    for moment in range(1000):
        run_dir = tmp_path / str(moment)
        store, _ = two_checkpoints(run_dir)
        with monkeypatch.context() as patch:
            seen = kill_at(moment, patch, store)
            try:
                save(store, step)
            except Killed:
                killed = True
            else:
                killed = False
        found = open_checkpoint(run_dir, "latest")
        published = "exchange" in seen or "rename" in seen
        assert found.step == (step if published else 2)
        assert is_consistent(found)
        for path in store.directory.glob("step_*"):
            open_checkpoint(path)
        save(CheckpointStore(run_dir, keep_best=False), 4)
        assert not list(store.directory.glob(".*"))
        if not killed:
            break
    assert {"mkdir", "fsync", "unlink", "rmdir"} <= set(seen)
    assert ("exchange" if step == 2 else "rename") in seen


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Processes that start at once, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def save_for_ever(run_dir: Path, saved: Connection) -> None:
    """Continue from the latest checkpoint, and tell the steps that are saved."""
    torch.set_num_threads(1)
    with RunLock(run_dir):
        store = CheckpointStore(run_dir, keep_best=False)
        latest = store.latest()
        step = 0 if latest is None else latest.step
        saved.send(step)
        while True:
            step += 1
            save(store, step, SIZE)
            saved.send(step)


@pytest.mark.slow
def test_kill_at_random_moments(
    tmp_path: Path, processes: multiprocessing.context.ForkServerContext
) -> None:
    drawn = random.Random(0)
    interrupted = last = 0
    for _ in range(20):
        receiver, sender = processes.Pipe(duplex=False)
        process = processes.Process(target=save_for_ever, args=(tmp_path, sender))
        process.start()
        sender.close()
        resumed = receiver.recv()
        assert resumed >= last
        start = time.monotonic()
        receiver.recv()
        time.sleep(drawn.uniform(0.0, time.monotonic() - start))
        process.kill()
        process.join()
        last = max([resumed + 1, *drained(receiver)])
        interrupted += any(tmp_path.glob("checkpoints/.tmp_*"))
        found = open_checkpoint(tmp_path, "latest")
        assert found.step in (last, last + 1)
        assert is_consistent(found)
        for path in tmp_path.glob("checkpoints/step_*"):
            open_checkpoint(path)
    assert last >= 20
    assert interrupted > 0
    store = CheckpointStore(tmp_path, keep_best=False)
    save(store, last + 2)
    assert not list(store.directory.glob(".*"))


def drained(receiver: Connection) -> Iterator[int]:
    """What a process that is dead now has sent."""
    try:
        while True:
            yield receiver.recv()
    except (EOFError, ConnectionResetError):
        return


def hold_lock(run_dir: Path, started: Connection) -> None:
    with RunLock(run_dir):
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        started.send(worker)
        time.sleep(60)


def test_a_killed_process_frees_its_run_directory_though_its_workers_live(
    tmp_path: Path, processes: multiprocessing.context.ForkServerContext
) -> None:
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=hold_lock, args=(tmp_path, sender))
    process.start()
    worker = receiver.recv()
    try:
        with pytest.raises(UserError, match=f"in use by process {process.pid}"), RunLock(tmp_path):
            pass
        process.kill()
        process.join()
        os.kill(worker, 0)
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
