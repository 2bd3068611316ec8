"""Two machines, each a network namespace of this one, and a cable between them that is cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tencentpretrain.train.saved_checkpoint import find_latest
from tests.helpers.pretraining import metrics, words_of, write_shards

ROOT = Path(__file__).resolve().parents[2]
HOSTS = (f"one{os.getpid()}", f"two{os.getpid()}")
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = "29517"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_make_hosts() -> bool:
    """Whether this user may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        ip("netns", "add", HOSTS[0])
    except subprocess.CalledProcessError:
        return False
    ip("netns", "del", HOSTS[0])
    return True


pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts(), reason="needs root and `ip netns`"),
]


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces with a cable between them."""
    cables = tuple(f"v{host}" for host in HOSTS)
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for host, cable, address in zip(HOSTS, cables, ADDRESSES, strict=True):
            ip("link", "set", cable, "netns", host)
            ip("-n", host, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", host, "link", "set", cable, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield cables[0], cables[1]
    finally:
        for host in HOSTS:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", host)


def start(number: int, cable: str, words: list[str], output: Path) -> subprocess.Popen[bytes]:
    """torchrun on host `number` with one process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    launcher += ["--node-rank", str(number), "--nproc-per-node", "1"]
    launcher += ["--master-addr", ADDRESSES[0], "--master-port", PORT]
    command = ["ip", "netns", "exec", HOSTS[number], *launcher, "pretrain.py", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": cable}
    with output.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def run(cables: tuple[str, str], words: list[str], folder: Path, cut_at: str = "") -> list[int]:
    """Exit codes of the command on both hosts; the cable is cut when the first says `cut_at`."""
    outputs = [folder / f"host{number}.txt" for number in range(2)]
    both = [start(n, cables[n], words, outputs[n]) for n in range(2)]
    try:
        deadline = time.monotonic() + 150
        while any(process.poll() is None for process in both) and time.monotonic() < deadline:
            if cut_at and cut_at in outputs[0].read_text():
                ip("-n", HOSTS[1], "link", "set", cables[1], "down")
                cut_at = ""
            time.sleep(0.2)
        assert all(process.poll() is not None for process in both), "a host hangs"
    finally:
        for process in both:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return [process.returncode for process in both]


def test_a_run_over_two_hosts_survives_a_cut_cable(hosts: tuple[str, str], tmp_path: Path) -> None:
    shards, folder = write_shards(tmp_path / "data"), tmp_path / "run"
    keys = {"trainer.steps": 1500, "trainer.eval_every": 1500, "checkpoint.every": 20}
    words = [*words_of(shards, folder, **keys), "parallel=fsdp", "parallel.timeout=6"]
    assert 0 not in run(hosts, words, tmp_path, cut_at="step 61/")  # saved at 60
    said = (tmp_path / "host0.txt").read_text()
    assert "rank 0 of 2 lost another one while" in said, said
    found = find_latest(folder / "checkpoints")
    assert found is not None
    assert found.step >= 60
    ip("-n", HOSTS[1], "link", "set", hosts[1], "up")
    more = [*words, f"trainer.stop_after={20}"]
    assert run(hosts, more, tmp_path) == [0, 0], (tmp_path / "host0.txt").read_text()
    assert metrics(folder)[-1]["step"] == found.step + 20
