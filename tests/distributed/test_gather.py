"""Rows of all processes, and the gradients that come back."""

from __future__ import annotations

import torch
from torch import Tensor

from tencentpretrain.distributed.gather import first_row, gather_rows
from tencentpretrain.errors import TrainingError
from tests.helpers.two_processes import in_two_processes


def test_one_process_has_its_own_rows() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows
    assert first_row(rows) == 0


def gathered(rank: int) -> list[Tensor]:
    rows = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
    together = gather_rows(rows)
    weights = torch.arange(12.0).view(6, 2) * (1 + rank)
    (together * weights).sum().backward()
    assert rows.grad is not None
    return [together.detach(), rows.grad, torch.tensor(first_row(rows))]


def test_gradients_are_those_of_all_processes_together() -> None:
    both = in_two_processes(gathered)
    for rank, (together, grad, first) in enumerate(both):
        one = torch.arange(6.0).view(3, 2)
        assert torch.equal(together, torch.cat([one, one + 10]))
        assert torch.equal(grad, 3 * torch.arange(12.0).view(6, 2)[3 * rank :][:3])
        assert int(first) == 3 * rank


def unequal(rank: int) -> str:
    try:
        gather_rows(torch.zeros(2 + rank, 4))
    except TrainingError as error:
        return str(error)
    return ""


def test_unequal_numbers_of_rows_are_refused_everywhere() -> None:
    assert all("have [2, 3]" in said for said in in_two_processes(unequal))
