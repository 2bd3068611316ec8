"""Parameters that the processes of a tensor axis share, each with its part."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, distribute_tensor

from tencentpretrain.distributed.layout import is_shared


class Cutter:
    """Replaces parameters by shared ones; those that are tied stay so.

    Args:
        mesh: Of the one axis whose processes share them.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self._made: dict[nn.Parameter, nn.Parameter] = {}

    def cut(self, module: nn.Module, placement: Placement, only: str | None = None) -> None:
        """Share the own parameters of `module`, or the one named `only`."""
        for name, parameter in list(module.named_parameters(recurse=False)):
            if only in (None, name):
                setattr(module, name, self._shared(parameter, placement))

    def _shared(self, parameter: nn.Parameter, placement: Placement) -> nn.Parameter:
        if isinstance(parameter, DTensor):
            return parameter
        if parameter not in self._made:
            cut = distribute_tensor(parameter.detach(), self.mesh, [placement])
            self._made[parameter] = nn.Parameter(cut, parameter.requires_grad)
        return self._made[parameter]


def own_part(parameter: Tensor) -> Tensor:
    """What this process has of `parameter`, differentiably.

    Of one that all have, each uses another part of the gradient; they are added where gradients are
    reduced.
    """
    if not is_shared(parameter):
        return parameter
    is_whole = all(placement.is_replicate() for placement in parameter.placements)
    own: Tensor = parameter.to_local(grad_placements=[Partial()] if is_whole else None)
    return own
