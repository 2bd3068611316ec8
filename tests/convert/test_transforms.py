"""Every transform and its way back, and shapes without values."""

import pytest
import torch

from tencentpretrain.convert.original_sequences import FirstKernel, Kernel, TwoBiases
from tencentpretrain.convert.transforms import (
    SAME,
    SQUEEZED,
    TRANSPOSED,
    Fused,
    Interleaved,
    SkippedRows,
    Transform,
    Turned,
)

NUMBERS = {"heads": 4, "rows": 2, "is_interleaved": 1}
CASES: dict[str, tuple[Transform, list[tuple[int, ...]]]] = {
    "same": (SAME, [(3, 5)]),
    "transposed": (TRANSPOSED, [(3, 5)]),
    "transposed vector": (TRANSPOSED, [(5,)]),
    "fused": (Fused(3), [(12, 5)]),
    "fused vector": (Fused(2), [(12,)]),
    "fused and transposed": (Fused(3, is_transposed=True), [(5, 12)]),
    "interleaved": (Interleaved(3), [(24, 5)]),
    "interleaved vector": (Interleaved(3), [(24,)]),
    "squeezed": (SQUEEZED, [(1, 7)]),
    "turned": (Turned(), [(16, 5)]),
    "turned vector": (Turned(), [(16,)]),
    "first kernel": (FirstKernel(), [(6, 1, 3, 5)]),
    "kernel": (Kernel(), [(6, 5, 3, 1)]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_way_back_gives_the_same(name: str) -> None:
    transform, shapes = CASES[name]
    theirs = [torch.randn(shape) for shape in shapes]
    ours = transform.to_ours(theirs, NUMBERS)
    assert all(
        torch.equal(left, right)
        for left, right in zip(theirs, transform.to_theirs(ours, NUMBERS), strict=True)
    )
    with torch.device("meta"):
        described = transform.to_ours([torch.empty(shape) for shape in shapes], NUMBERS)
    assert [tensor.shape for tensor in described] == [tensor.shape for tensor in ours]


def test_fused_parts_lie_one_below_the_other() -> None:
    query, key = Fused(2).to_ours([torch.arange(8.0).view(4, 2)], {})
    assert query.tolist() == [[0, 1], [2, 3]]
    assert key.tolist() == [[4, 5], [6, 7]]


def test_interleaved_parts_alternate_head_by_head() -> None:
    fused = torch.arange(12.0).view(12, 1)
    query, key, value = Interleaved(3).to_ours([fused], {"heads": 2})
    assert [part.flatten().tolist() for part in (query, key, value)] == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
    ]


def test_turned_rows_become_neighbours_where_ours_are() -> None:
    rows = torch.arange(8.0)
    (turned,) = Turned().to_ours([rows], {"heads": 2, "is_interleaved": 1})
    assert turned.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert Turned().to_ours([rows], {"heads": 2, "is_interleaved": 0})[0] is rows


def test_skipped_rows_come_back_as_zeros() -> None:
    table = torch.arange(1.0, 9.0).view(4, 2)
    (kept,) = SkippedRows("rows").to_ours([table], NUMBERS)
    assert kept.tolist() == [[5, 6], [7, 8]]
    assert SkippedRows("rows").to_theirs([kept], NUMBERS)[0].tolist() == [
        [0, 0],
        [0, 0],
        [5, 6],
        [7, 8],
    ]


def test_two_biases_become_their_sum() -> None:
    bias, other = torch.randn(5), torch.randn(1, 5, 1, 1)
    (total,) = TwoBiases().to_ours([bias, other], {})
    assert torch.equal(total, bias + other.view(5))
    first, second = TwoBiases().to_theirs([total], {})
    assert torch.equal(first, total)
    assert second.shape == other.shape
