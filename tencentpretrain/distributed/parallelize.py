"""Cutting and sharding a built model in place; the model's own files know nothing of it.

In this order: tensors are cut, blocks are recomputed and compiled as asked for, then sharded one by
one, and at last what is left of the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils._pytree import register_dataclass

from tencentpretrain.distributed.blocks import BlockOptions, own_blocks
from tencentpretrain.distributed.mesh import CutConfig, MeshConfig
from tencentpretrain.distributed.regions import Axis
from tencentpretrain.distributed.tensor_parallel import cut_tensors
from tencentpretrain.types import Hidden, Layout, ModelOutput, Ratio, TargetOutput

if TYPE_CHECKING:
    from tencentpretrain.model import Model


def parallelize(model: Model, mesh: DeviceMesh, config: MeshConfig, blocks: BlockOptions) -> None:
    """Distribute the parameters of `model`, with or without values, over `mesh`.

    Args:
        model: Whole on every process.
        mesh: With the axes dp_replicate, dp_shard and tp.
        config: How they are sharded.
        blocks: How blocks compute.
    """
    if mesh["tp"].size() > 1:
        is_sequence = isinstance(config, CutConfig) and config.sequence
        cut_tensors(model, Axis(mesh["tp"], is_sequence))
    blocks.apply(model)
    data = mesh["dp_replicate", "dp_shard"]
    gathered = torch.bfloat16 if config.gather == "bf16" else torch.float32
    options: dict[str, Any] = {
        "mesh": data,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=None if gathered == torch.float32 else gathered,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        ),
        "offload_policy": CPUOffloadPolicy() if config.offload else OffloadPolicy(),
        # A single number cannot be cut: it stays whole, and `Mesh.clip` adds its gradients.
        "ignored_params": {p for p in model.parameters() if not p.dim()},
    }
    # What a target asks of a block outside its forward pass, the block must have at hand.
    for block in [] if model.target.want.projections else own_blocks(model):
        fully_shard(block, reshard_after_forward=config.reshard, **options)
    # What is left stays gathered: heads and tables are read where the model is not called itself.
    fully_shard(model, reshard_after_forward=False, **options)
    gather_in(model, ("forward", "encode", "read", "decode"))
    model.register_forward_hook(give_back)


def give_back(model: nn.Module, *_: object) -> None:
    """After a forward pass without a backward pass `model` has its own parameters again.

    Else an optimiser that is made then would be over what was gathered, and would train nothing.
    """
    if not torch.is_grad_enabled():
        assert isinstance(model, FSDPModule)
        model.reshard()


def gather_in(model: Model, methods: tuple[str, ...]) -> None:
    """Let the outermost call of any of `methods` gather what is left of the model.

    FSDP knows of `forward` alone, and would take an inner call that ends for the end of all.
    """
    is_inside = False

    def entered(inner: Callable[..., Any], outer: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inner)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_inside
            if is_inside:
                return inner(*args, **kwargs)
            is_inside = True
            try:
                return outer(*args, **kwargs)
            finally:
                is_inside = False

        return call

    for name in methods:
        inner = outer = getattr(model, name)
        if name != "forward":
            register_fsdp_forward_method(model, name)
            outer = getattr(model, name)
        setattr(model, name, entered(inner, outer))


# FSDP looks for tensors in what is given to modules and what they return.
for _kind in (Layout, Hidden, ModelOutput, Ratio, TargetOutput):
    register_dataclass(_kind)
