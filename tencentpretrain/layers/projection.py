"""Several linear layers on the same states."""

from __future__ import annotations

from torch import Tensor, nn


class Projecting(nn.Module):
    """A module that begins with one or several linear layers on the same states."""

    def project(self, states: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
        """What each of its `linears` makes of `states` [T, D]: [T, W] each."""
        return tuple(linear(states) for linear in linears)
