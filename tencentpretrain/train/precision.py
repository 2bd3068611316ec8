"""Numeric precision, and what the hardware can do at best."""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Literal

import torch

PrecisionName = Literal["auto", "fp32", "bf16"]

PEAK_RATES: Final = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "4090": (165e12, 82.6e12),
    "A10": (125e12, 31.2e12),
}
"""Dense multiply-adds (as 2) a second in bf16 and fp32, from data sheets, by part of the name."""


def resolve_precision(name: PrecisionName, device: torch.device) -> torch.dtype:
    """The type of matrix products: "auto" is bf16 where `device` is fast at it, else fp32."""
    if name != "auto":
        return torch.bfloat16 if name == "bf16" else torch.float32
    if device.type == "cuda":
        is_fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities()
        is_fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if is_fast else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Context in which matrix products compute in `dtype`; weights stay in fp32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Best rate of multiply-adds (as 2) a second; measured on a CPU, None for an unknown GPU."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        rates = next((rates for part, rates in PEAK_RATES.items() if part in name), None)
        return None if rates is None else rates[dtype != torch.bfloat16]
    size = 1024
    matrix = torch.ones(size, size, dtype=dtype)
    torch.mm(matrix, matrix)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
