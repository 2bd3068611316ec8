import pytest
import torch
from torch import nn

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.train.optim import OPTIMIZERS


def optimizer(name: str, model: nn.Module, **keys: object) -> torch.optim.Optimizer:
    return OPTIMIZERS.build(decode(OPTIMIZERS.config_class(name), {"name": name, **keys}))(model)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_d27_biases_and_norms_do_not_decay_and_frozen_parameters_are_left_out(name: str) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model[3].requires_grad_(False)
    decayed, others = optimizer(name, model, weight_decay=0.3).param_groups
    assert decayed["weight_decay"] == 0.3
    assert others["weight_decay"] == 0
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[1].weight)}
    assert {id(p) for p in others["params"]} == {
        id(p) for p in (model[1].bias, model[2].weight, model[2].bias)
    }


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_step_reduces_the_loss(name: str) -> None:
    model = nn.Linear(4, 1)
    inputs, wanted = torch.randn(32, 4), torch.randn(32, 1)
    optim = optimizer(name, model, lr=0.05)
    losses = []
    for _ in range(30):
        loss = (model(inputs) - wanted).square().mean()
        losses.append(loss.item())
        loss.backward()
        optim.step()
        optim.zero_grad()
    assert losses[-1] < losses[0]


def test_d86_adamw_equals_torch() -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    pair = (
        optimizer("adamw", ours, lr=0.01, beta2=0.95, eps=1e-6, weight_decay=0.0),
        torch.optim.AdamW(
            theirs.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-6, weight_decay=0
        ),
    )
    inputs = torch.randn(8, 3)
    for model, optim in zip((ours, theirs), pair, strict=True):
        for _ in range(5):
            optim.zero_grad()
            model(inputs).square().sum().backward()
            optim.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)


def test_a_learning_rate_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lr: must be > 0"):
        optimizer("adamw", nn.Linear(1, 1), lr=0)
