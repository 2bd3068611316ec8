"""What is done to the blocks of a model for speed and memory, on one process as on many.

Recomputation (Chen et al., 2016) keeps only what enters a block and computes the rest again in the
backward pass; the selective kind keeps results of matrix products, which cost most of the time, and
computes again what lies between them (Korthikanti et al., 2022).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from tencentpretrain.layers.attention import View

if TYPE_CHECKING:
    from tencentpretrain.model import Model

RecomputeName = Literal["none", "selective", "full"]

PRODUCTS: Final = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)


@dataclass(frozen=True)
class BlockOptions:
    """How blocks compute.

    Args:
        recompute: What is computed again in the backward pass.
        every: One of so many blocks does, the first among them.
        compiles: Whether each block is compiled.
        dtype: In which their matrices are multiplied.
    """

    recompute: RecomputeName = "none"
    every: int = 1
    compiles: bool = False
    dtype: torch.dtype = torch.float32

    def apply(self, model: Model) -> None:
        """Change the blocks of `model` in place; names of parameters stay."""
        blocks = distinct_blocks(model)
        if self.recompute != "none":
            for block in blocks[:: self.every]:
                recomputed(block, self.recompute)
        if self.compiles:
            for block in blocks:
                block.compile()


def distinct_blocks(model: Model) -> list[nn.Module]:
    """All blocks of all stacks, each once."""
    blocks = (block for stack in model.stacks() for block in stack.blocks())
    return list({id(block): block for block in blocks}.values())


def own_blocks(model: Model) -> list[nn.Module]:
    """Blocks that are one layer each, so that what is gathered for one is used by one."""
    counts: dict[int, int] = {}
    for stack in model.stacks():
        for block in stack.blocks():
            counts[id(block)] = counts.get(id(block), 0) + 1
    return [block for block in distinct_blocks(model) if counts[id(block)] == 1]


def recomputed(block: nn.Module, kind: RecomputeName) -> None:
    """Let `block` compute its forward pass again in the backward pass."""
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    options: dict[str, Any] = {} if kind == "full" else {"context_fn": contexts}
    forward = block.forward

    @functools.wraps(forward)
    def forward_again(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward_alone, *args, use_reentrant=False, **options, **kwargs)

    def forward_alone(*args: Any, **kwargs: Any) -> Any:
        # What is made in the first of several blocks that share a mask would not be made again.
        own = [replace(a, mask=a.mask.alone()) if isinstance(a, View) else a for a in args]
        return forward(*own, **kwargs)

    block.forward = forward_again


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keeps = operation in PRODUCTS
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE
