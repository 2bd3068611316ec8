"""The norm of gradients that lie in parts on several processes, and clipping by it.

torch's own `clip_grad_norm_` cannot add norms of parameters on different meshes, which a model has
that is sharded by data and cut by tensors.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tencentpretrain.distributed.layout import copies, is_shared, local_part


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    limit: float,
    world: int = 1,
    extra: Tensor | None = None,
) -> Tensor:
    """Scale gradients so that the norm of all of them together is at most `limit`.

    Args:
        parameters: Those without a gradient are left out.
        limit: Greatest norm.
        world: Number of processes that share the parameters.
        extra: [] fp32, added over the processes in the same call, in place.

    Returns:
        The norm [] before, in fp32.
    """
    gradients = [_whole(p.grad) for p in parameters if p.grad is not None]
    locals_ = [local_part(gradient) for gradient in gradients]
    if not locals_:
        return torch.zeros(())
    # Where some lie on the host, all is added there; a number of the host can scale them all.
    home = min((gradient.device for gradient in locals_), key=lambda device: device.type != "cpu")
    norms = torch._foreach_norm(locals_)
    squares = torch.stack([norm.to(home) for norm in norms]).float().square()
    if world > 1:
        # Each part counts once, however many processes have it.
        parts = torch.tensor([1 / copies(gradient, world) for gradient in gradients])
        total = (squares * parts.to(squares.device, non_blocking=True)).sum()
        both = torch.stack([total, total.new_zeros(()) if extra is None else extra.to(home)])
        dist.all_reduce(both)
        total = both[0]
        if extra is not None:
            extra.copy_(both[1])
    else:
        total = squares.sum()
    norm = total.sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(locals_, factor)
    return norm


def _whole(gradient: Tensor) -> Tensor:
    """A gradient whose parts were added up already."""
    if is_shared(gradient) and any(p.is_partial() for p in gradient.placements):
        raise ValueError("gradients must be added over their processes before they are clipped")
    return gradient
