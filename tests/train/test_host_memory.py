"""Blocks that are freed and taken again cost no page faults."""

import platform
import subprocess
import sys

import pytest

from tencentpretrain.train import host_memory

FAULTS = """
import resource
from tencentpretrain.train.host_memory import keep_freed_memory

assert keep_freed_memory()

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


LIBRARY, VERSION = platform.libc_ver()
IS_NEW = LIBRARY == "glibc" and tuple(map(int, VERSION.split("."))) >= (2, 36)


@pytest.mark.skipif(not IS_NEW, reason="needs a glibc that keeps blocks of more than 32 MiB")
def test_memory_that_was_freed_is_taken_again_without_page_faults() -> None:
    def count(code: str) -> int:
        answer = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        return int(answer.stdout)

    # Without it, each page of blocks above 32 MiB comes anew in every step.
    assert count(FAULTS) < count(FAULTS.replace("assert keep_freed_memory()", "")) / 5


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(host_memory.ctypes, "CDLL", None)
    assert not host_memory.keep_freed_memory()
