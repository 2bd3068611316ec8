"""An encoder of your own: depth-wise convolutions, each followed by a feed-forward layer."""

from torch import Tensor, nn

from tencentpretrain.config import PositiveInt, Probability, check
from tencentpretrain.encoders.base import ENCODERS, Encoder, EncoderConfig
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.layers.feed_forward import FeedForward
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import NOTHING, Hidden, Layout, Want


@ENCODERS.register("convolution")
class ConvolutionEncoder(Encoder):
    """Every layer mixes `kernel` neighbouring positions, then the features of each position."""

    class Config(EncoderConfig):
        layers: PositiveInt = 4
        """Number of layers."""
        kernel: PositiveInt = 5
        """Width of the convolutions, in positions; odd, so that a row keeps its length."""
        dropout: Probability = 0.1
        """Dropout rate of the update of each layer."""

        @check("kernel")
        def _kernel_is_odd(self) -> str | None:
            return None if self.kernel % 2 else f"kernel must be odd, but is {self.kernel}"

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        width, kernel = sizes.hidden, config.kernel
        self.mix = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
            for _ in range(config.layers)
        )
        self.feed = nn.ModuleList(
            FeedForward(width, 4 * width, "gelu", has_bias=True) for _ in range(config.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.layers))
        self.dropout = Dropout(config.dropout)

    def init_weights(self, std: float) -> None:
        """Fill what is neither a linear layer nor a norm; those are filled for you."""
        for parameter in self.mix.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=std)
            else:
                nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor, layout: Layout, want: Want = NOTHING) -> Hidden:
        """Encode `hidden` [B, S, D]; padding stays zero, so that no real position can read it."""
        valid = layout.valid[..., None]
        states, layers = hidden * valid, [hidden]
        for mix, feed, norm in zip(self.mix, self.feed, self.norms, strict=True):
            update = feed(mix(states.transpose(1, 2)).transpose(1, 2))
            states = norm(states + self.dropout(update)) * valid
            layers.append(states)
        return Hidden(states, layout, tuple(layers[number] for number in want.layers))
