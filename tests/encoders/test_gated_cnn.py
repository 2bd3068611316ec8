import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.config import decode
from tencentpretrain.encoders.gated_cnn import GatedCnnEncoder
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.sizes import Sizes
from tests.helpers.models import layout_of, randomise


def encoder_of(width: int = 8, **keys: Any) -> GatedCnnEncoder:
    data = {"name": "gated_cnn", "dropout": 0.0, **keys}
    encoder = GatedCnnEncoder(decode(GatedCnnEncoder.Config, data), Sizes(width, width, 50))
    randomise(encoder, 0.3)
    return encoder


def gated(layer: Any, states: Tensor, kernel: int) -> Tensor:
    """Equation 1 of the paper, position by position, of `states` [B, S, D]."""
    rows = []
    for position in range(states.shape[1]):
        value, gate = layer.value.bias, layer.gate.bias
        for tap in range(kernel):
            source = position - (kernel - 1) + tap
            if source >= 0:
                value = value + states[:, source] @ layer.value.weight[:, :, tap].T
                gate = gate + states[:, source] @ layer.gate.weight[:, :, tap].T
        rows.append(value * torch.sigmoid(gate))
    return torch.stack(rows, 1)


@pytest.mark.parametrize(
    ("layers", "kernel", "block"), [(5, 4, 2), (4, 1, 1), (6, 2, 3), (1, 3, 2)]
)
def test_it_equals_the_formula(layers: int, kernel: int, block: int) -> None:
    encoder = encoder_of(layers=layers, kernel_size=kernel, block_size=block)
    states = torch.randn(2, 6, 8, requires_grad=True)
    expected = shortcut = gated(encoder.layers[0], states, kernel)
    for number in range(1, layers):
        expected = gated(encoder.layers[number], expected, kernel)
        if number % block == 0:
            expected = shortcut = expected + shortcut
    output = encoder(states, layout_of((6, 6))).states
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    inputs = [states, *encoder.parameters()]
    for one, other in zip(
        torch.autograd.grad((output * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_two_dimensional_convolutions_with_two_biases_are_the_same() -> None:
    """As TencentPretrain stores it: [D, 1, K, E] first, then [D, D, K, 1], and biases apart."""
    width, narrow, kernel = 8, 3, 4
    config = decode(GatedCnnEncoder.Config, {"name": "gated_cnn", "layers": 2})
    encoder, states = GatedCnnEncoder(config, Sizes(width, narrow, 50)), torch.randn(2, 6, narrow)
    encoder.eval()
    names = ("value", "gate")
    first = {name: torch.randn(width, 1, kernel, narrow) for name in names}
    second = {name: torch.randn(width, width, kernel, 1) for name in names}
    biases = {name: torch.randn(2, 2, width) for name in names}
    with torch.no_grad():
        for name in names:
            taps = first[name].squeeze(1).transpose(1, 2)
            for number, weight in enumerate((taps, second[name].squeeze(-1))):
                layer = encoder.layers[number].get_submodule(name)
                layer.get_parameter("weight").copy_(weight)
                layer.get_parameter("bias").copy_(biases[name][number].sum(0))

    def convolve(grid: Tensor, weights: dict[str, Tensor], number: int) -> Tensor:
        grid = F.pad(grid, (0, 0, kernel - 1, 0))
        value, gate = (
            F.conv2d(grid, weights[name], biases[name][number, 0])
            + biases[name][number, 1][:, None, None]
            for name in names
        )
        return value * torch.sigmoid(gate)

    expected = convolve(convolve(states[:, None], first, 0), second, 1)
    output = encoder(states, layout_of((6, 6))).states
    torch.testing.assert_close(output, expected.squeeze(-1).transpose(1, 2))


def test_d5_convolutions_start_as_he_proposed() -> None:
    data = {
        "hidden": 48,
        "embedding": {"parts": {"word": {}}, "norm": "none"},
        "encoder": {"name": "gated_cnn", "layers": 2},
        "target": {"lm": {}},
    }
    encoder = build_model(decode(ModelConfig, data), 50).encoder
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            expected = math.sqrt(2 / (48 * 4))
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.05)
