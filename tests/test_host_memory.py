"""Blocks that are freed and taken again cost no page faults, and lie in large pages."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tencentpretrain import host_memory
from tencentpretrain.host_memory import tune_host_memory

TUNE = """
import torch
from tencentpretrain.host_memory import tune_host_memory

assert tune_host_memory(torch.device("cpu"))
"""
FAULTS = """
import resource

def step():
    blocks = [b"x" * (size << 20) for size in (40, 3, 60, 48, 9, 33)]
    del blocks

for _ in range(12):  # until blocks have found their places
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
LARGE = """
block = b"x" * (64 << 20)
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")))
"""
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HAS_LARGE = SETTING.is_file() and "[madvise]" in SETTING.read_text()

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def count(code: str) -> int:
    """The number that a process with `code` prints."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout)


@needs_glibc
def test_memory_that_was_freed_is_taken_again_without_page_faults() -> None:
    # Without it, each page of blocks above 32 MiB comes anew in every step.
    assert count(TUNE + FAULTS) < count(FAULTS) / 5


@needs_glibc
@pytest.mark.skipif(not HAS_LARGE, reason="the system has no large pages on demand")
def test_large_blocks_lie_in_large_pages() -> None:
    assert count(LARGE) < 8 << 10
    assert count(TUNE + LARGE) > 48 << 10


def test_gpus_and_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_tune", None)
    assert not tune_host_memory(torch.device("meta"))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not tune_host_memory(torch.device("cpu"))


def test_no_addresses_are_taken_where_they_count_as_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        """Has nothing that could be called."""

    monkeypatch.delenv("LD_PRELOAD", raising=False)
    policy = tmp_path / "overcommit_memory"
    policy.write_text("2\n")
    monkeypatch.setattr(host_memory, "_OVERCOMMIT", policy)
    host_memory._ask_for_large_pages(Library())  # type: ignore[arg-type]
    policy.write_text("0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 40, 1 << 40))
    host_memory._ask_for_large_pages(Library())  # type: ignore[arg-type]
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (unlimited, unlimited))
    with pytest.raises(AttributeError, match="malloc"):
        host_memory._ask_for_large_pages(Library())  # type: ignore[arg-type]
    # Whoever fills what is given would fill half of the memory.
    for name, value in (
        ("MALLOC_PERTURB_", "1"),
        ("GLIBC_TUNABLES", "glibc.malloc.perturb=1"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            host_memory._ask_for_large_pages(Library())  # type: ignore[arg-type]
