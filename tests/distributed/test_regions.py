"""What goes between slices of positions and all of them, and the gradients that come back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from tencentpretrain.distributed.regions import (
    Axis,
    gather_positions,
    project_parts,
    slice_positions,
    sum_parts,
)
from tests.helpers.two_processes import WORLD, in_two_processes

COUNTS = [1, 4, 5]


def axis_of(is_sequence: bool) -> Axis:
    return Axis(init_device_mesh("cpu", (WORLD,), mesh_dim_names=("tp",)), is_sequence)


def sliced(rank: int) -> list[list[Tensor]]:
    """Of each count: the slice, what is gathered again, and the gradient of positions."""
    axis, found = axis_of(True), []
    for count in COUNTS:
        states = (torch.arange(3.0 * count).view(count, 3)).requires_grad_()
        own = slice_positions(states, axis)
        whole = gather_positions(own * (1 + rank), count, axis)
        (whole * states.detach()).sum().backward()
        assert states.grad is not None
        found.append([own.detach(), whole.detach(), states.grad])
    return found


@pytest.mark.distributed
def test_slices_are_cut_and_gathered() -> None:
    both = in_two_processes(sliced)
    for number, count in enumerate(COUNTS):
        states = torch.arange(3.0 * count).view(count, 3)
        share = (count + 1) // 2
        factors = torch.where(torch.arange(count) < share, 1.0, 2.0)[:, None]
        own = torch.cat([found[number][0] for found in both])
        assert torch.equal(own[:count], states)
        assert torch.equal(own[count:], states[-1:].expand(2 * share - count, 3))
        for _, whole, grad in (found[number] for found in both):
            assert torch.equal(whole, states * factors)
            assert torch.equal(grad, states * factors)


def summed(rank: int) -> list[list[Tensor]]:
    """Of each count and way: the sum, and the gradient of this process's part."""
    found = []
    for count in COUNTS:
        for is_sequence in (False, True):
            axis = axis_of(is_sequence)
            parts = (torch.arange(2.0 * count).view(count, 2) * (1 + rank)).requires_grad_()
            total = sum_parts(parts, axis)
            weights = torch.arange(2.0 * count + 2).view(-1, 2)
            own = axis.own(weights[:count]) if is_sequence else weights[:count]
            (total * own).sum().backward()
            assert parts.grad is not None
            found.append([total.detach(), parts.grad])
    return found


@pytest.mark.distributed
def test_parts_are_added_once() -> None:
    both = in_two_processes(summed)
    for number, count in enumerate(COUNTS):
        weights = torch.arange(2.0 * count).view(count, 2)
        total = 3 * weights
        for found in both:
            assert torch.equal(found[2 * number][0], total)
            assert torch.equal(found[2 * number][1], weights)
            assert torch.equal(found[2 * number + 1][1], weights)
        sliced = torch.cat([found[2 * number + 1][0] for found in both])
        assert torch.equal(sliced[:count], total)
        assert not sliced[count:].any()


def drawn(count: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """States, weights of two layers of [6, 4] and [2, 4] with their biases, factors of results."""
    torch.manual_seed(count)
    states = torch.randn(count, 4, dtype=torch.float64)
    parameters = [torch.randn(n, 4, dtype=torch.float64) for n in (6, 2)]
    parameters += [torch.randn(n, dtype=torch.float64) for n in (6, 2)]
    return states, parameters, torch.randn(count, 8, dtype=torch.float64)


def results(states: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return [F.linear(states, parameters[n], parameters[2 + n]) for n in range(2)]


def projected(rank: int, kind: str) -> list[list[Tensor]]:
    """Of each count: the results and the gradients of states and parameters."""
    found, axis = [], axis_of(kind != "whole")
    for count in COUNTS:
        states, parameters, factors = drawn(count)
        states.requires_grad_()
        own = [p.chunk(WORLD)[rank].clone().requires_grad_() for p in parameters]
        given = slice_positions(states, axis) if kind == "slices" else states
        both = project_parts(given, own[:2], [*own[2:]], axis, kind != "slices")
        assert all(len(part) >= count for part in both)
        first, second = (part[:count] for part in both)
        loss = (first * factors[:, 3 * rank :][:, :3]).sum()
        (loss + (second * factors[:, 6 + rank :][:, :1]).sum()).backward()
        tensors = [first, second, states.grad, *(p.grad for p in own)]
        found.append([tensor.detach() for tensor in tensors if tensor is not None])
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["whole", "slices", "memory"])
def test_columns_are_those_of_the_whole_layers(kind: str) -> None:
    """Memory is read whole by all, but kept in slices."""
    ranks = in_two_processes(projected, kind)
    for number, count in enumerate(COUNTS):
        states, parameters, factors = drawn(count)
        for tensor in (states, *parameters):
            tensor.requires_grad_()
        first, second = results(states, parameters)
        ((first * factors[:, :6]).sum() + (second * factors[:, 6:]).sum()).backward()
        parts = [*zip(*(rank[number] for rank in ranks), strict=True)]
        torch.testing.assert_close(torch.cat(parts[0], 1), first.detach())
        torch.testing.assert_close(torch.cat(parts[1], 1), second.detach())
        for grad in parts[2]:
            torch.testing.assert_close(grad, states.grad)
        for got, parameter in zip(parts[3:], parameters, strict=True):
            torch.testing.assert_close(torch.cat(got), parameter.grad)
