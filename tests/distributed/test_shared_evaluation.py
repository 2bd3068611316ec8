"""Processes that evaluate a task together: each computes a share, and all have the results."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tencentpretrain.distributed.processes import Circle
from tencentpretrain.tasks.inference import Machine, infer
from tests.helpers.two_processes import in_two_processes
from tests.tasks.test_inference import CPU, prepared


def added(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for tensor in tensors.values():
        dist.all_reduce(tensor)
    return tensors


def shared(
    rank: int, folder: str, name: str, size: int, gathers: bool, is_uniform: bool
) -> dict[str, Any]:
    own = Path(folder, str(rank))
    own.mkdir()
    task, model, examples = prepared(own, name)
    type(task).is_uniform = is_uniform
    circle = Circle(dist.group.WORLD)
    parallel: Any = SimpleNamespace(rank=rank, world=2, gathers=gathers, circle=circle, sum=added)
    passes: list[int] = []
    encode = model.encode

    def counted(batch: Any) -> Any:
        passes.append(1)
        return encode(batch)

    model.encode = counted  # type: ignore[method-assign]
    outputs, scores = infer(task, model, examples, Machine(CPU, torch.float32, size, 0, parallel))
    return {"outputs": [o.tolist() for o in outputs], "scores": scores, "passes": len(passes)}


@pytest.mark.parametrize("name", ["classify", "ner"])
@pytest.mark.parametrize(("size", "passes"), [(4, 3), (21, 1)])
def test_two_processes_have_the_results_of_one(
    name: str, size: int, passes: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    both = in_two_processes(shared, str(tmp_path), name, size, True, True)
    torch.manual_seed(0)
    task, model, examples = prepared(tmp_path, name)
    outputs, scores = infer(task, model, examples, Machine(CPU, torch.float32, size))
    for process in both:
        assert process["passes"] == passes
        for found, alone in zip(process["outputs"], outputs, strict=True):
            np.testing.assert_allclose(found, alone, atol=1e-6)
        assert process["scores"] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(("gathers", "passes"), [(True, 6), (False, 3)])
def test_batches_of_different_ways_are_not_shared_where_parameters_are_cut(
    gathers: bool, passes: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    both = in_two_processes(shared, str(tmp_path), "classify", 4, gathers, False)
    assert [process["passes"] for process in both] == [passes, passes]
    assert both[0]["scores"] == both[1]["scores"]
