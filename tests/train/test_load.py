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


class Tied(nn.Module):
    """An embedding and an output that are one parameter, a buffer to save and one not to."""

    def __init__(self, width: int = 4, tied: bool = True) -> None:
        super().__init__()
        self.word = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.output = nn.Linear(width, 5)
        if tied:
            self.output.weight = self.word.weight
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.norm(self.word(ids)))


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_each_tensor_is_stored_once_and_not_copied() -> None:
    model = Tied()
    tensors = state_tensors(model)
    assert "word.weight" in tensors
    assert "norm.running_mean" in tensors
    assert "output.weight" not in tensors
    assert "table" not in tensors
    assert tensors["word.weight"].data_ptr() == model.word.weight.data_ptr()
    assert not tensors["word.weight"].requires_grad


@pytest.mark.parametrize("names", [["word.weight"], ["output.weight"]])
def test_weights_come_back_under_any_name_of_a_tied_tensor(
    tmp_path: Path, names: list[str]
) -> None:
    source, model = Tied(), Tied()
    tensors = state_tensors(source)
    weight = tensors.pop("word.weight")
    write_tensors(tmp_path / "x", tensors | {name: weight for name in names})
    report = load_weights(model, read_tensors(tmp_path / "x"))
    assert_same(values(model), values(source))
    assert model.output.weight is model.word.weight
    assert sorted(report.matched) == sorted(state_tensors(source))
    assert [report.missing, report.unexpected] == [[], []]
    assert [report.mismatched, report.converted] == [{}, {}]
    assert str(report) == "7 of 7 tensors match"


def test_both_tied_names_must_agree() -> None:
    source, model = Tied(), Tied()
    tensors = state_tensors(source)
    load_weights(model, tensors | {"output.weight": tensors["word.weight"].clone()})
    assert_same(values(model), values(source))
    before = values(model)
    with pytest.raises(CheckpointError, match=r"`word\.weight` and `output\.weight` are tied"):
        load_weights(model, tensors | {"output.weight": torch.zeros(5, 4)})
    assert_same(values(model), before)


def test_a_tied_file_does_not_fill_an_untied_model() -> None:
    with pytest.raises(CheckpointError, match=r"1 missing: `output\.weight`"):
        load_weights(Tied(tied=False), state_tensors(Tied()))


def faulty(kind: str) -> dict[str, Tensor]:
    tensors = state_tensors(Tied())
    if kind == "missing":
        del tensors["norm.bias"]
    if kind == "unexpected":
        tensors["head.bias"] = torch.zeros(2)
    if kind == "mismatched":
        tensors["output.bias"] = torch.zeros(6)
    return tensors


@pytest.mark.parametrize(
    ("kind", "name", "pattern"),
    [
        ("missing", "norm.bias", "norm.*"),
        ("unexpected", "head.bias", "head.*"),
        ("mismatched", "output.bias (", "output.*"),
    ],
)
def test_each_fault_must_be_allowed_by_name(kind: str, name: str, pattern: str) -> None:
    model = Tied()
    before = values(model)
    for allowed in ([], ["other.*"]):
        with pytest.raises(CheckpointError) as caught:
            load_weights(model, faulty(kind), **{f"allow_{kind}": allowed})
        assert f"1 {kind}: `{name}" in str(caught.value)
        assert f"`allow_{kind}`, such as [{pattern}]" in str(caught.value)
        assert_same(values(model), before)
    tensors = faulty(kind)
    report = load_weights(model, tensors, **{f"allow_{kind}": [pattern]})
    assert list(getattr(report, kind)) == [name.split(" ")[0]]
    assert torch.equal(model.word.weight, tensors["word.weight"])
    assert f"1 {kind}: `{name.split(' ')[0]}`" in str(report)
    assert torch.equal(model.output.bias, before["output.bias"]) == (kind == "mismatched")


def test_all_faults_are_reported_together_and_long_lists_are_cut() -> None:
    model = nn.ModuleDict({f"layer{i:02}": nn.Linear(2, 2) for i in range(20)})
    tensors = {
        "layer00.weight": torch.zeros(2, 2),
        "layer00.bias": torch.zeros(3),
        "x": torch.ones(1),
    }
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tensors)
    message = str(caught.value)
    assert "only 1 of 40 tensors fit" in message
    assert "38 missing: `layer01.weight`, " in message
    assert "... (28 more)" in message
    assert "1 unexpected: `x`" in message
    assert "`layer00.bias ([3] in the file, [2] in the model)`" in message


def test_a_missing_tied_tensor_may_be_allowed_under_its_other_name() -> None:
    model = Tied()
    tensors = state_tensors(model)
    del tensors["word.weight"]
    assert load_weights(model, tensors, allow_missing=["output.*"]).missing == ["word.weight"]


def test_a_file_of_which_nothing_is_used_is_refused_whatever_is_allowed() -> None:
    tensors = {f"bert.{name}": tensor for name, tensor in state_tensors(Tied()).items()}
    with pytest.raises(CheckpointError, match="0 of 7 tensors match: is this the right model") as e:
        load_weights(Tied(), tensors, ["*"], ["*"], ["*"])
    assert "`word.weight`" in str(e.value)
    assert "`bert.norm.bias`" in str(e.value)
    with pytest.raises(CheckpointError, match="the file has none"):
        load_weights(Tied(), {}, ["*"])


def test_other_precisions_are_converted_and_reported() -> None:
    source, model = Tied(), Tied()
    tensors = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in state_tensors(source).items()
    }
    report = load_weights(model, tensors)
    assert report.converted["word.weight"] == "bfloat16 to float32"
    assert model.word.weight.dtype == torch.float32
    assert torch.equal(model.word.weight, source.word.weight.bfloat16().float())
    tensors["norm.num_batches_tracked"] = torch.tensor(1.0)
    with pytest.raises(CheckpointError, match="float32 in the file, int64 in the model"):
        load_weights(model, tensors)


def test_a_model_without_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="meta device"):
        load_weights(Tied().to("meta"), state_tensors(Tied()))


def test_state_that_is_no_tensor_is_refused() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {}

    with pytest.raises(TypeError, match="_extra_state"):
        state_tensors(Extra(1, 1))


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
