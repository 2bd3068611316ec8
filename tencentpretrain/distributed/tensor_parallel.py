"""Matrices of blocks cut among processes (Shoeybi et al., 2019, Megatron-LM, section 3).

Heads and the inside of feed-forward layers are cut by columns, what leads out of them by rows, so
that each half of a block adds up its parts once. Between them every process has all states.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from tencentpretrain.distributed.vocabulary import cut_vocabulary
from tencentpretrain.layers.attention import Attention
from tencentpretrain.layers.block import Block
from tencentpretrain.layers.feed_forward import FeedForward
from tencentpretrain.layers.stack import TransformerStack
from tencentpretrain.targets.contrast import ContrastTarget
from tencentpretrain.wrappers.adapter import Adapter

log = logging.getLogger("tencentpretrain")

if TYPE_CHECKING:
    from tencentpretrain.model import Model


def tensor_misfits(model: Model, parts: int) -> list[str]:
    """What of `model` cannot be cut into `parts`, and what to do about it."""
    problems = []
    for stack in model.stacks():
        if not isinstance(stack, TransformerStack):
            kind = type(stack).__name__
            problems.append(f"{kind} has no blocks that tensor parallelism can cut")
            continue
        config = stack.config
        numbers = {"heads": config.heads, "kv_heads": stack.heads.kv_heads}
        numbers["ffn"] = config.ffn or 4 * stack.hidden
        problems += [
            f"{config.part}.{key}={number} must be a multiple of parallel.tensor={parts}"
            for key, number in numbers.items()
            if number % parts
        ]
    want = model.target.want
    if want.attentions or want.projections:
        problems.append("a target reads attention, whose heads lie on several processes")
    if any(isinstance(module, Adapter) for module in model.modules()):
        problems.append("adapters (wrappers) cannot be combined with tensor parallelism")
    if any(isinstance(module, ContrastTarget) for module in model.modules()):
        problems.append("the target `contrast` cannot be combined with tensor parallelism")
    return [f"{problem}; use parallel=fsdp, or change it" for problem in problems]


def cut_tensors(model: Model, mesh: DeviceMesh) -> None:
    """Cut the blocks of all stacks of `model` over the one axis of `mesh`."""
    parts = mesh.size()
    for stack in model.stacks():
        assert isinstance(stack, TransformerStack)
        stack.heads = replace(
            stack.heads,
            heads=stack.heads.heads // parts,
            kv_heads=stack.heads.kv_heads // parts,
        )
        stack.own_heads = partial(head_part, mesh)  # type: ignore[method-assign]
        for block in stack.layers:
            assert isinstance(block, Block)
            parallelize_module(block, mesh, tensor_plan(block))
    if not cut_vocabulary(model, mesh):
        log.info("word tables and output layers stay whole on each process")


def head_part(mesh: DeviceMesh, scores: Tensor) -> Tensor:
    """Scores [1, N / W, S_q, S_k] of the heads of this process; gradients are those of all."""
    whole = DTensor.from_local(scores, mesh, [Replicate()], run_check=False)
    part: Tensor = whole.redistribute(placements=[Shard(1)]).to_local()
    return part


def tensor_plan(block: nn.Module) -> dict[str, ParallelStyle]:
    """How each linear layer of a block is cut, by its name in the block."""
    plan: dict[str, ParallelStyle] = {}
    for name, module in block.named_modules():
        if isinstance(module, Attention):
            plan |= {f"{name}.{part}": ColwiseParallel() for part in ("query", "key", "value")}
            plan[f"{name}.output"] = RowwiseParallel()
            if isinstance(module.query_norm, nn.RMSNorm):
                # One gain serves the heads of all processes: heads are what a sequence is else.
                norm = SequenceParallel(sequence_dim=1, use_local_output=True)
                plan |= {f"{name}.query_norm": norm, f"{name}.key_norm": norm}
        elif isinstance(module, FeedForward):
            plan |= {f"{name}.{p}": ColwiseParallel() for p in ("up", "gate") if hasattr(module, p)}
            plan[f"{name}.down"] = RowwiseParallel()
    return plan
