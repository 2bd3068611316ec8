"""Several linear layers on the same states."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projecting(nn.Module):
    """A module that begins with one or several linear layers on the same states."""

    def project(self, states: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
        """What each of its `linears` makes of `states` [T, D]: [T, W] each."""
        kind = states.device.type
        if len(linears) > 1 and torch.is_autocast_enabled(kind):
            # Each would do it again, and again for its gradient.
            states = states.to(torch.get_autocast_dtype(kind))
        return tuple(linear(states) for linear in linears)
