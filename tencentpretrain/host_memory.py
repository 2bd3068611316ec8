"""Memory of the host, where a model computes on the CPU: kept when freed, and in large pages."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import resource
from pathlib import Path
from typing import Final

import torch

_OVERCOMMIT: Final = Path("/proc/sys/vm/overcommit_memory")
_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
_HUGEPAGE: Final = 14
"""What glibc and Linux call M_TRIM_THRESHOLD, M_MMAP_MAX and MADV_HUGEPAGE."""


def tune_host_memory(device: torch.device) -> bool:
    """Let glibc keep what this process frees, in large pages; whether it does.

    By default it gives large blocks back to the system as soon as they are freed, and each that is
    taken again comes as pages of 4 KiB that the system must clear one by one. A step takes the same
    sizes over and over, and lasts up to a fifth longer by that; and a tenth longer by what the
    processor does to find so many pages. Before a model is given memory is the time to call it.

    Args:
        device: Where the model computes; only a CPU needs it. Other C libraries are left alone.
    """
    return device.type == "cpu" and platform.libc_ver()[0] == "glibc" and _tune()


@functools.cache
def _tune() -> bool:
    library = ctypes.CDLL(None)
    # All blocks lie on the heap, and its end is never given back.
    is_kept = bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, -1))
    if is_kept:
        _ask_for_large_pages(library)
    return is_kept


def _ask_for_large_pages(library: ctypes.CDLL) -> None:
    """Grow the heap by addresses, not by memory, and advise the system to use large pages there.

    By half of what the machine has; the rest comes in small pages. So does all where addresses are
    counted as if they were memory (overcommit_memory=2, ulimit -v), the system refuses, or another
    allocator takes the place of glibc's or fills what it gives (MALLOC_PERTURB_).
    """
    perturbs = "MALLOC_PERTURB_" in os.environ or "perturb" in os.environ.get("GLIBC_TUNABLES", "")
    if perturbs or "malloc" in os.environ.get("LD_PRELOAD", ""):
        return
    if not _OVERCOMMIT.is_file() or _OVERCOMMIT.read_text().strip() == "2":
        return
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return
    size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = library.malloc(size)
    if block is not None:
        start = block + -block % mmap.PAGESIZE
        library.madvise(start, block + size - start, _HUGEPAGE)
        library.free(block)
