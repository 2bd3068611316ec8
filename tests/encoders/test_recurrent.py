import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.encoders.base import ENCODERS
from tencentpretrain.encoders.recurrent import RecurrentEncoder
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.sizes import Sizes
from tests.helpers.models import layout_of, randomise

TORCH = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def encoder_of(name: str, **keys: Any) -> RecurrentEncoder:
    data = {"name": name, "layers": 3, "dropout": 0.0, **keys}
    encoder = ENCODERS.build(decode(ENCODERS.config_class(name), data), Sizes(8, 8, 50))
    assert isinstance(encoder, RecurrentEncoder)
    randomise(encoder, 0.4)
    return encoder


def renamed(encoder: RecurrentEncoder, direction: int, suffix: str) -> dict[str, nn.Parameter]:
    """Parameters of one direction under the names that torch gives them in a stack."""
    found = {}
    for name, parameter in encoder.named_parameters():
        _, layer, _, number, kind = name.split(".")
        if int(number) == direction:
            found[kind.replace("_l0", f"_l{layer}") + suffix] = parameter
    return found


def assert_same_gradients(
    ours: Tensor, theirs: Tensor, states: Tensor, pairs: list[tuple[nn.Parameter, nn.Parameter]]
) -> None:
    """Outputs are equal, and so are the gradients of the input and of all pairs of parameters."""
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    found, expected = (
        torch.autograd.grad((output * weights).sum(), [states, *parameters])
        for output, parameters in zip((ours, theirs), zip(*pairs, strict=True), strict=True)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", TORCH)
def test_a_stack_equals_that_of_torch(name: str, directions: int) -> None:
    encoder = encoder_of(name, directions=directions)
    bidirectional = directions == 2
    theirs = TORCH[name](8, 8 // directions, 3, batch_first=True, bidirectional=bidirectional)
    ours = renamed(encoder, 0, "") | renamed(encoder, 1, "_reverse")
    theirs.load_state_dict({key: value.detach() for key, value in ours.items()})
    states = torch.randn(2, 6, 8, requires_grad=True)
    pairs = [(ours[key], parameter) for key, parameter in theirs.named_parameters()]
    output = encoder(states, layout_of((6, 6))).states
    assert_same_gradients(output, theirs(states)[0], states, pairs)


@pytest.mark.parametrize("name", TORCH)
def test_separate_directions_equal_two_stacks_of_torch(name: str) -> None:
    encoder = encoder_of(name, directions=2, separate=True)
    stacks = [TORCH[name](8, 4, 3, batch_first=True) for _ in range(2)]
    pairs = []
    for direction, stack in enumerate(stacks):
        ours = renamed(encoder, direction, "")
        stack.load_state_dict({key: value.detach() for key, value in ours.items()})
        pairs += [(ours[key], parameter) for key, parameter in stack.named_parameters()]
    states = torch.randn(2, 6, 8, requires_grad=True)
    forward, backward = stacks[0](states)[0], stacks[1](states.flip(1))[0].flip(1)
    output = encoder(states, layout_of((6, 6))).states
    assert_same_gradients(output, torch.cat([forward, backward], -1), states, pairs)


@pytest.mark.parametrize(
    ("hidden", "keys", "message"),
    [
        (7, {"directions": 2}, r"encoder.directions=2 needs an even width hidden, but it is 7"),
        (8, {"separate": True}, r"encoder.directions=2, but it is 1"),
        (8, {"directions": 3}, r"encoder.directions: must be one of 1 or 2"),
        (8, {"heads": 2}, r"encoder.heads: is not a known key"),
    ],
)
def test_contradictions_are_refused(hidden: int, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(hidden, **keys)


def model_of(hidden: int, **keys: Any) -> Model:
    data = {
        "hidden": hidden,
        "embedding": {"parts": {"word": {}}, "norm": "none"},
        "encoder": {"name": "lstm", **keys},
        "target": {"lm": {}},
    }
    return build_model(decode(ModelConfig, data), 50)


def test_d5_recurrent_layers_start_as_torch_lets_them() -> None:
    """Uniform up to the inverse root of the width, biases too, not N(0, 0.02)."""
    for name, parameter in model_of(64, layers=2).encoder.named_parameters():
        limit = 1 / math.sqrt(64)
        assert float(parameter.detach().abs().max()) <= limit, name
        assert float(parameter.detach().std()) == pytest.approx(limit / math.sqrt(3), rel=0.1)
