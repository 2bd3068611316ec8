from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.load import load_weights, state_tensors
from tencentpretrain.train.tensor_file import read_tensors, write_tensors
from tests.helpers.models import tiny_model
from tests.helpers.tied import Tied, assert_same, values


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


def test_d3_a_file_of_which_nothing_is_used_is_refused_whatever_is_allowed() -> None:
    tensors = {f"bert.{name}": tensor for name, tensor in state_tensors(Tied()).items()}
    with pytest.raises(CheckpointError, match="0 of 7 tensors match: is this the right model") as e:
        load_weights(Tied(), tensors, ["*"], ["*"], ["*"])
    assert "`word.weight`" in str(e.value)
    assert "`bert.norm.bias`" in str(e.value)
    with pytest.raises(CheckpointError, match="the file has none"):
        load_weights(Tied(), {}, ["*"])
    wide = {name: torch.zeros(9, 9) for name in state_tensors(Tied())}
    with pytest.raises(CheckpointError, match=r"right model\? `.*` is \[9, 9\] in the file, \["):
        load_weights(Tied(), wide, ["*"], ["*"], ["*"])


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


@pytest.mark.parametrize("interpolate", [True, False])
def test_positions_of_another_image_size_are_resized_by_choice(interpolate: bool) -> None:
    small, large = (image_model(size, interpolate) for size in (8, 16))
    tensors, name = state_tensors(small), "embedding.patch_position.weight"
    if not interpolate:
        with pytest.raises(CheckpointError, match=r"1 mismatched: `embedding.patch_position"):
            load_weights(large, tensors)
        return
    report = load_weights(large, tensors)
    assert report.resized == {name: "[5, 16] to [17, 16]"}
    assert "1 resized: `embedding.patch_position.weight` from [5, 16] to [17, 16]" in str(report)
    assert not report.mismatched
    grid = tensors[name][1:].T.view(1, 16, 2, 2)
    expected = nn.functional.interpolate(grid, (4, 4), mode="bicubic")[0].flatten(1).T
    table = large.get_parameter(name)
    torch.testing.assert_close(table[1:], expected)
    assert torch.equal(table[0], tensors[name][0])


def image_model(size: int, interpolate: bool) -> nn.Module:
    patch = {"image_size": size, "patch_size": 4}
    parts = {"patch": patch, "patch_position": {"interpolate": interpolate}}
    changes = {"embedding": {"parts": parts}, "objective": {"transform": {"size": size}}}
    return tiny_model("vit/tiny", changes)
