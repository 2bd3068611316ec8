"""Matrices of blocks cut among processes (Shoeybi et al., 2019, Megatron-LM, section 3).

Heads and the inside of feed-forward layers are cut by columns, what leads out of them by rows, so
that each half of a block adds up its parts once. Between them every process has all positions, or
its slice of them (Korthikanti et al., 2022, Reducing activation recomputation, section 4.2.2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from tencentpretrain.config import ConfigError
from tencentpretrain.distributed.cut_parameters import Cutter, own_part
from tencentpretrain.distributed.layout import is_shared
from tencentpretrain.distributed.randomness import call_apart
from tencentpretrain.distributed.regions import (
    Axis,
    gather_positions,
    project_parts,
    slice_positions,
    sum_parts,
)
from tencentpretrain.distributed.vocabulary import cut_vocabulary
from tencentpretrain.layers.attention import Attention, CrossAttention
from tencentpretrain.layers.block import Block
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.layers.feed_forward import FeedForward, GatedFeedForward
from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.projection import Projecting
from tencentpretrain.layers.residual import Residual
from tencentpretrain.layers.stack import TransformerStack
from tencentpretrain.targets.contrast import ContrastTarget
from tencentpretrain.types import Layout
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


def cut_tensors(model: Model, axis: Axis) -> None:
    """Cut the blocks of all stacks of `model`, its word tables and output layers over `axis`.

    Raises:
        ConfigError: if blocks have parameters of which it is not known what slices give.
    """
    cutter, parts = Cutter(axis.mesh), axis.mesh.size()
    for stack in model.stacks():
        assert isinstance(stack, TransformerStack)
        stack.heads = replace(
            stack.heads,
            heads=stack.heads.heads // parts,
            kv_heads=stack.heads.kv_heads // parts,
        )
        stack.own_heads = partial(head_part, axis)  # type: ignore[method-assign]
        if axis.is_sequence:
            stack.head_grid = partial(SlicedGrid, axis=axis)  # type: ignore[method-assign]
            _share(stack.norm, cutter)
        for block in stack.layers:
            assert isinstance(block, Block)
            _cut_block(block, axis, cutter)
    if not cut_vocabulary(model, axis.mesh, cutter):
        log.info("word tables and output layers stay whole on each process")


def head_part(axis: Axis, scores: Tensor) -> Tensor:
    """Scores [1, N / W, S_q, S_k] of the heads of this process; gradients are those of all."""
    whole = DTensor.from_local(scores, axis.mesh, [Replicate()], run_check=False)
    part: Tensor = whole.redistribute(placements=[Shard(1)]).to_local()
    return part


class SlicedGrid(HeadGrid):
    """A grid whose flat states between the layers that are cut are slices [S, D] of positions.

    Args:
        layout: Of all positions.
        heads: Of this process.
        axis: The processes that have the slices.
    """

    def __init__(self, layout: Layout, heads: int, *, axis: Axis) -> None:
        super().__init__(layout, heads)
        self.axis = axis

    def unpad(self, hidden: Tensor) -> Tensor:
        """The slice [S, D] of this process."""
        return slice_positions(super().unpad(hidden), self.axis)

    def pad(self, states: Tensor) -> Tensor:
        """States [B, S, D] of the slices of all processes."""
        return super().pad(gather_positions(states, self.count, self.axis))

    def split(self, states: Tensor) -> Tensor:
        """Heads of all positions, without the copies that fill the last slice."""
        return super().split(states[: self.count])

    def by_row(self, values: Tensor) -> Tensor:
        """What belongs to each position of the slice."""
        return self.axis.own(super().by_row(values))


def _cut_block(block: Block, axis: Axis, cutter: Cutter) -> None:
    for module in block.modules():
        if isinstance(module, Projecting):
            inner, outer = _linears(module)
            for linear in inner:
                cutter.cut(linear, Shard(0))
            _cut_rows(outer, axis, cutter)
            module.project = partial(_project, module, axis)  # type: ignore[method-assign]
        if isinstance(module, Attention):
            # One gain serves the heads of all processes.
            _share(module.query_norm, cutter)
            _share(module.key_norm, cutter)
            _draw_apart(module, axis)
    if not axis.is_sequence:
        return
    for name, child in block.named_children():
        if isinstance(child, Residual):
            _share(child, cutter)
            _draw_apart(child.dropout, axis)
        elif name.endswith("_norm"):
            _share(child, cutter)
    for name, parameter in block.named_parameters():
        if not is_shared(parameter):
            message = (
                f"`{name}` of {type(block).__name__} is not known to work on slices; use false"
            )
            raise ConfigError.at("parallel.sequence", message)


def _linears(module: Projecting) -> tuple[list[nn.Linear], nn.Linear]:
    """Layers that lead into heads or features, and the one that leads out of them."""
    if isinstance(module, Attention):
        return [module.query, module.key, module.value], module.output
    assert isinstance(module, FeedForward)
    gates = [module.gate] if isinstance(module, GatedFeedForward) else []
    return [module.up, *gates], module.down


def _project(
    module: Projecting, axis: Axis, states: Tensor, *linears: nn.Linear
) -> tuple[Tensor, ...]:
    is_memory = isinstance(module, CrossAttention) and linears[0] is not module.query
    weights = [own_part(linear.weight) for linear in linears]
    biases = [_own_bias(linear) for linear in linears]
    return project_parts(states, weights, biases, axis, is_memory or not axis.is_sequence)


def _own_bias(linear: nn.Linear) -> Tensor | None:
    bias: Tensor | None = linear.bias
    return None if bias is None else own_part(bias)


def _cut_rows(linear: nn.Linear, axis: Axis, cutter: Cutter) -> None:
    """Let `linear` add up what the processes make of their parts of its input."""
    cutter.cut(linear, Shard(1), only="weight")
    if axis.is_sequence and linear.bias is not None:
        cutter.cut(linear, Replicate(), only="bias")

    def forward(states: Tensor) -> Tensor:
        total = sum_parts(F.linear(states, own_part(linear.weight)), axis)
        bias = _own_bias(linear)
        return total if bias is None else total + bias.to(total.dtype)

    linear.forward = forward  # type: ignore[method-assign,assignment]


def _share(module: nn.Module, cutter: Cutter) -> None:
    """Add the gradients that the processes have of the own parameters of `module`."""
    if not [*module.parameters(recurse=False)]:
        return
    cutter.cut(module, Replicate())
    forward = module.forward

    def forward_shared(*args: Any) -> Any:
        with _at_hand(module):
            return forward(*args)

    module.forward = forward_shared


@contextmanager
def _at_hand(module: nn.Module) -> Iterator[None]:
    """`module` with the parts that this process has of its parameters."""
    shared = dict(module._parameters)
    own = {name: own_part(p) for name, p in shared.items() if p is not None}
    module._parameters.update(own)  # type: ignore[arg-type]
    try:
        yield
    finally:
        module._parameters.update(shared)


def _draw_apart(module: Attention | Dropout, axis: Axis) -> None:
    """Give `module` dropout of its own on each process."""
    forward: Callable[..., Any] = module.forward
    # Not where it is defined: that loads the compiler, which few runs need.
    call = torch.compiler.disable(call_apart)

    def forward_apart(states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not module.training or not module.rate:
            return forward(states, *args, **kwargs)
        return call(forward, axis.rank, states.device, states, *args, **kwargs)

    module.forward = forward_apart  # type: ignore[method-assign]
