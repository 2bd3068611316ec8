"""Memory of the host that a step has freed is kept for the next one."""

from __future__ import annotations

import ctypes
import platform
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_MOST: Final = (1 << 31) - 1
"""The greatest number that `mallopt` takes: 2 GiB."""
_LARGEST: Final = (1 << 30, 1 << 25)
"""Blocks that are kept: up to 1 GiB, or the 32 MiB that older versions allow."""


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, up to 2 GiB at the end of its heap; whether it does.

    By default it gives large blocks back to the system as soon as they are freed, and each that is
    taken again comes as pages that the system must clear one by one: to a fifth of a training step
    on a CPU, which frees and takes the same sizes over and over. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    keeps_end = bool(mallopt(_TRIM_THRESHOLD, _MOST))
    return any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST) and keeps_end
