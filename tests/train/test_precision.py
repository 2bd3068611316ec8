from contextlib import nullcontext

import pytest
import torch

from tencentpretrain.train import precision
from tencentpretrain.train.precision import autocast, peak_flops, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
    ],
)
def test_auto_is_bf16_where_the_cpu_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU) is expected
    assert resolve_precision("fp32", CPU) is torch.float32
    assert resolve_precision("bf16", CPU) is torch.bfloat16


def test_d81_bf16_changes_products_and_nothing_else() -> None:
    weight, inputs = torch.randn(4, 4), torch.randn(4, 4)
    with autocast(torch.bfloat16, CPU):
        assert (inputs @ weight).dtype is torch.bfloat16
    assert isinstance(autocast(torch.float32, CPU), nullcontext)


def test_the_peak_of_a_cpu_is_measured_and_of_a_known_gpu_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = peak_flops(CPU, torch.float32)
    assert measured is not None
    assert measured > 1e8
    peak_flops.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    for place, dtype in enumerate((torch.bfloat16, torch.float32)):
        assert peak_flops(torch.device("cuda"), dtype) == precision.PEAK_RATES["H200"][place]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "something new")
    assert peak_flops(torch.device("cuda:1"), torch.bfloat16) is None
    peak_flops.cache_clear()
