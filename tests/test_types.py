import pytest
import torch

from tencentpretrain.types import Batch, Labels, Layout, Ratio, Stream, Want, map_tensors


def test_a_layout_knows_its_valid_positions() -> None:
    valid = torch.tensor([[True, True, False], [True, False, False]])
    layout = Layout.of(valid)
    assert not layout.is_full
    assert layout.tokens is not None
    assert layout.tokens.tolist() == [0, 1, 3]
    assert Layout.of(torch.ones(2, 3, dtype=torch.bool)).is_full


def test_wants_add_up_sorted_and_without_repetition() -> None:
    both = Want(layers=(3, 1)) | Want(layers=(0, 3), attentions=(2,))
    assert both == Want((0, 1, 3), (2,))


def test_ratios_add_totals_and_counts() -> None:
    total = Ratio(torch.tensor(6.0), torch.tensor(2)) + Ratio(torch.tensor(1.0), torch.tensor(5))
    assert float(total.value) == 1.0
    assert float(Ratio(torch.tensor(0.0), torch.tensor(0)).value) == 0.0


def test_a_detached_ratio_has_no_gradient() -> None:
    total = torch.tensor(2.0, requires_grad=True)
    assert not Ratio(total, torch.tensor(1)).detach().total.requires_grad


def batch() -> Batch:
    layout = Layout.of(torch.tensor([[True, False]]), documents=torch.zeros(1, 2))
    stream = Stream({"ids": torch.ones(1, 2, dtype=torch.int64)}, layout)
    labels = {"lm": Labels(torch.tensor([4]), torch.tensor([0])), "nsp": Labels(torch.tensor([1]))}
    return Batch({"src": stream}, labels, 1, {"soft": (torch.ones(2), "name")})


def test_every_tensor_of_a_batch_moves() -> None:
    moved = batch().to(torch.device("meta"))
    seen = []
    map_tensors(moved, seen.append)
    assert len(seen) == 8
    assert {tensor.device.type for tensor in seen} == {"meta"}
    assert moved.tokens == 1
    assert moved.extras["soft"][1] == "name"
    assert moved.labels["nsp"].index is None


def test_a_batch_on_its_device_is_not_copied() -> None:
    there = batch()
    assert there.to(torch.device("cpu")) is there


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_pinned_batch_moves_to_the_gpu() -> None:
    moved = batch().pin_memory().to(torch.device("cuda"))
    assert moved.streams["src"].layout.valid.is_cuda
