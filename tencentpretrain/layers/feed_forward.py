"""Position-wise feed-forward layers."""

from __future__ import annotations

from torch import Tensor, nn

from tencentpretrain.layers.activation import ActivationName, build_activation
from tencentpretrain.layers.projection import Projecting


class FeedForward(Projecting):
    """Two linear layers with an activation between (Vaswani et al., 2017, section 3.3)."""

    def __init__(
        self, hidden: int, ffn: int, activation: ActivationName, *, has_bias: bool = True
    ) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, ffn, bias=has_bias)
        self.activation = build_activation(activation)
        self.down = nn.Linear(ffn, hidden, bias=has_bias)

    def forward(self, states: Tensor) -> Tensor:
        """Map [..., D] to [..., D] through [..., F]."""
        (up,) = self.project(states, self.up)
        down: Tensor = self.down(self.activation(up))
        return down


class GatedFeedForward(FeedForward):
    """What goes up is multiplied by an activated gate (Shazeer, 2020, GLU variants)."""

    def __init__(
        self, hidden: int, ffn: int, activation: ActivationName, *, has_bias: bool = True
    ) -> None:
        super().__init__(hidden, ffn, activation, has_bias=has_bias)
        self.gate = nn.Linear(hidden, ffn, bias=has_bias)

    def forward(self, states: Tensor) -> Tensor:
        """Map [..., D] to [..., D] through [..., F]."""
        gate, up = self.project(states, self.gate, self.up)
        down: Tensor = self.down(self.activation(gate) * up)
        return down
