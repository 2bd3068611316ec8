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
from tencentpretrain.distributed.layout import is_shared
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
    options: dict[str, Any] = {
        "mesh": data,
        "offload_policy": CPUOffloadPolicy() if config.offload else OffloadPolicy(),
    }
    is_low = blocks.dtype == torch.bfloat16 and config.gather != "fp32"
    # What a target asks of a block outside its forward pass, the block must have at hand.
    for block in [] if model.target.want.projections else own_blocks(model):
        if is_low and (vectors := shared_vectors(block)):
            fully_shard(vectors, reshard_after_forward=False, mp_policy=policy(None), **options)
        fully_shard(
            block,
            reshard_after_forward=config.reshard,
            mp_policy=policy(torch.bfloat16 if is_low else None),
            ignored_params=whole_parameters(block, 1 if is_low else 0),
            **options,
        )
    # What is left stays gathered: heads and tables are read where the model is not called itself.
    fully_shard(
        model,
        reshard_after_forward=False,
        mp_policy=policy(None),
        ignored_params=whole_parameters(model, 0),
        **options,
    )
    gather_in(model, ("forward", "encode", "read", "decode"))
    model.register_forward_hook(give_back)


def policy(gathered: torch.dtype | None) -> MixedPrecisionPolicy:
    """Parameters are gathered in this type, or in their own; gradients are added in fp32."""
    return MixedPrecisionPolicy(
        param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def whole_parameters(module: nn.Module, dims: int) -> set[nn.Parameter]:
    """Parameters with at most so many `dims` that every process keeps, in fp32.

    A single number cannot be cut. Where matrices are gathered in bf16, vectors beside them, such as
    the gains of norms, would lose digits that autocast leaves them. `Mesh.clip` averages their
    gradients.
    """
    return {p for p in module.parameters() if p.dim() <= dims and not is_shared(p)}


def shared_vectors(block: nn.Module) -> list[nn.Module]:
    """Modules that have vectors alone, of which processes add the gradients: norms of slices.

    They are gathered together in fp32, for the reason that `whole_parameters` gives.
    """
    own = ((module, [*module.parameters(recurse=False)]) for module in block.modules())
    return [m for m, found in own if found and all(p.dim() < 2 and is_shared(p) for p in found)]


def give_back(model: nn.Module, *_: object) -> None:
    """After a forward pass without a backward pass `model` has its own parameters again.

    Else an optimiser that is made then would be over what was gathered, and would train nothing.
    """
    if not torch.is_grad_enabled():
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


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
