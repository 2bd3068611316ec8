import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.load import load_weights, state_tensors
from tencentpretrain.train.optimizer_state import load_optimizer, optimizer_tensors
from tencentpretrain.train.tensor_file import read_tensors, write_tensors
from tests.helpers.tied import Tied, assert_same, values

Optimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
}


def groups(model: nn.Module, backwards: bool = False) -> list[dict[str, Any]]:
    """Parameters with and without decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    for group in found:
        group["params"] = group["params"][:: -1 if backwards else 1]
    return found[::-1] if backwards else found


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        drawn = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 5, (8,), generator=drawn)
        nn.functional.cross_entropy(model(ids), ids.flip(0)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    """Also with parameters in another order: states are found by name."""
    model = Tied()
    optimizer = OPTIMIZERS[kind](groups(model))
    train(model, optimizer, range(3))
    write_tensors(tmp_path / "model", state_tensors(model))
    write_tensors(tmp_path / "optimizer", optimizer_tensors(optimizer, model))
    train(model, optimizer, range(3, 6))

    resumed = Tied()
    other = OPTIMIZERS[kind](groups(resumed, backwards=True))
    load_weights(resumed, read_tensors(tmp_path / "model"))
    report = load_optimizer(other, resumed, read_tensors(tmp_path / "optimizer"))
    assert not report.converted
    train(resumed, other, range(3, 6))
    assert_same(values(resumed), values(model))
    assert_same(optimizer_tensors(other, resumed), optimizer_tensors(optimizer, model))


def trained(kind: str) -> tuple[Tied, torch.optim.Optimizer, dict[str, Tensor]]:
    model = Tied()
    optimizer = OPTIMIZERS[kind](groups(model))
    train(model, optimizer, range(2))
    tensors = {n: t.clone() for n, t in optimizer_tensors(optimizer, model).items()}
    return model, optimizer, tensors


def test_states_are_named_by_their_parameters() -> None:
    _, _, tensors = trained("adamw")
    assert {"word.weight/exp_avg", "norm.bias/exp_avg_sq", "output.bias/step"} <= tensors.keys()
    assert not any(name.startswith("output.weight") for name in tensors)


def test_types_and_devices_are_those_that_the_optimiser_makes() -> None:
    for kind in OPTIMIZERS:
        model, optimizer, tensors = trained(kind)
        before = copy.deepcopy(dict(optimizer.state))
        load_optimizer(optimizer, model, tensors)
        for old, new in zip(before.values(), optimizer.state.values(), strict=False):
            for key in old:
                if old[key] is not None:
                    assert (old[key].dtype, old[key].device) == (new[key].dtype, new[key].device)


def test_loaded_states_do_not_share_memory_with_the_file() -> None:
    model, optimizer, tensors = trained("adamw")
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    load_optimizer(optimizer, model, tensors)
    train(model, optimizer, range(2, 4))
    assert_same(tensors, kept)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ("adamw", "sgd momentum"),
        ("sgd momentum", "adamw"),
        ("adamw", "adafactor"),
        ("adamw", "adamw amsgrad"),
        ("adamw amsgrad", "adamw"),
        ("adamw", "sgd"),
    ],
)
def test_the_state_of_another_optimiser_is_refused(saved: str, loaded: str) -> None:
    _, _, tensors = trained(saved)
    model, optimizer, before = trained(loaded)
    with pytest.raises(CheckpointError, match="is not that of"):
        load_optimizer(optimizer, model, tensors)
    assert_same(optimizer_tensors(optimizer, model), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.bias/exp_avg"), "1 missing: `norm.bias/exp_avg`"),
        (
            lambda t: t.update({"nrm.bias/exp_avg": torch.ones(4)}),
            "1 unexpected: `nrm.bias/exp_avg`",
        ),
        (lambda t: t.update({"word.weight/exp_avg": torch.ones(5, 1)}), "1 mismatched: `word"),
        (
            lambda t: t.update({"output.bias/step": torch.ones(1)}),
            "1 mismatched: `output.bias/step",
        ),
        (
            lambda t: t.update({"output.weight/step": torch.ones(())}),
            "`word.weight` is there twice",
        ),
    ],
)
def test_states_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    model, optimizer, tensors = trained("adamw")
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_optimizer(optimizer, model, tensors)


def test_factored_states_have_the_shapes_of_their_parameter() -> None:
    model, optimizer, tensors = trained("adafactor")
    assert tensors["word.weight/row_var"].shape == (5, 1)
    tensors["word.weight/row_var"] = torch.ones(1, 4)
    with pytest.raises(CheckpointError, match=r"1 mismatched: `word\.weight/row_var`"):
        load_optimizer(optimizer, model, tensors)


def test_parameters_that_never_had_a_gradient_have_no_state() -> None:
    """As when training stops before its first step, or a head is not used yet."""
    model, optimizer, tensors = trained("adamw")
    kept = {name: t for name, t in tensors.items() if not name.startswith("norm.bias")}
    report = load_optimizer(optimizer, model, kept)
    assert sorted(report.missing) == sorted(tensors.keys() - kept.keys())
    assert_same(optimizer_tensors(optimizer, model), kept)
    load_optimizer(optimizer, model, {})
    assert not optimizer_tensors(optimizer, model)


def test_what_an_optimiser_for_a_device_keeps_is_known_without_one() -> None:
    """Kernels that read the step from the device refuse to run on the CPU."""
    model, _, tensors = trained("adamw")
    optimizer = torch.optim.AdamW(groups(model), capturable=True)
    load_optimizer(optimizer, model, tensors)
    assert_same(optimizer_tensors(optimizer, model), tensors)


def test_loading_changes_neither_weights_nor_settings() -> None:
    model, optimizer, tensors = trained("adamw fused")
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.found_inf = torch.zeros(())
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    before = values(model)
    load_optimizer(optimizer, model, tensors)
    assert_same(values(model), before)
    after = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    assert after == settings


def test_an_optimiser_of_another_model_is_refused() -> None:
    _, optimizer, _ = trained("adamw")
    for use in (optimizer_tensors, lambda o, m: load_optimizer(o, m, {})):
        with pytest.raises(ValueError, match="not in the model"):
            use(optimizer, Tied())


def test_states_that_are_no_tensors_are_refused() -> None:
    model, optimizer, _ = trained("adamw")
    optimizer.state[model.word.weight]["step"] = 3
    with pytest.raises(TypeError, match=r"`step` of `word\.weight` must be a tensor"):
        optimizer_tensors(optimizer, model)
