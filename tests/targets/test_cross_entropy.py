from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tencentpretrain.targets import cross_entropy
from tencentpretrain.targets.cross_entropy import class_loss, vocabulary_loss
from tencentpretrain.types import IGNORE

ROWS, WIDTH, VOCABULARY = 13, 6, 31


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    bias = torch.randn(VOCABULARY, dtype=dtype, requires_grad=True)
    labels = torch.randint(VOCABULARY, (ROWS,))
    labels[[0, 7, 12]] = IGNORE
    return states, weight, bias, labels


def chunked(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", rows * 4 * VOCABULARY)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 6, 13, 100])
def test_loss_and_gradients_are_those_of_torch(
    rows: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunked(monkeypatch, rows)
    states, weight, bias, labels = inputs()
    used = bias if has_bias else None
    wanted = [states, weight, bias] if has_bias else [states, weight]
    loss, accuracy = vocabulary_loss(states, weight, used, labels)
    logits = F.linear(states, weight, used)
    expected = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
    torch.testing.assert_close(loss.total, expected)
    assert int(loss.count) == int(accuracy.count) == ROWS - 3
    assert int(accuracy.total) == int((logits.argmax(-1) == labels).sum())
    ours = torch.autograd.grad(loss.total * 0.7, wanted)
    theirs = torch.autograd.grad(expected * 0.7, wanted)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-5)


def test_probabilities_of_classes_are_labels_too() -> None:
    logits, labels = torch.randn(ROWS, 5), torch.randint(3, (ROWS,))
    hard, soft = class_loss(logits, labels), class_loss(logits, F.one_hot(labels, 3).float())
    for one, other in zip(hard, soft, strict=True):
        torch.testing.assert_close(one.value, other.value)
        assert int(other.count) == ROWS
    shares = torch.rand(ROWS, 5).softmax(-1)
    expected = F.cross_entropy(logits, shares, reduction="sum")
    torch.testing.assert_close(class_loss(logits, shares)[0].total, expected)


def test_gradients_are_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    chunked(monkeypatch, 5)
    states, weight, bias, labels = inputs(torch.float64)

    tensors = [states, weight, bias]
    gradients = torch.autograd.grad(vocabulary_loss(*tensors, labels)[0].total, tensors)
    # Not gradcheck: it goes back twice, and the backward pass works in place.
    for number, gradient in enumerate(gradients):
        direction, losses = torch.randn_like(gradient), []
        for step in (1e-6, -1e-6):
            moved = [*tensors[:number], tensors[number] + step * direction, *tensors[number + 1 :]]
            losses.append(vocabulary_loss(*moved, labels)[0].total.detach())
        slope = (losses[0] - losses[1]) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-6)


def test_going_back_twice_is_refused_rather_than_wrong() -> None:
    states, weight, bias, labels = inputs()
    total = vocabulary_loss(states, weight, bias, labels)[0].total
    torch.autograd.grad(total, states, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, states)


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    states = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.5], [-1.0]], requires_grad=True)
    labels = torch.tensor([2, 2])
    loss, accuracy = vocabulary_loss(states, weight, None, labels)
    assert float(loss.total.detach()) == pytest.approx(2e4)
    assert int(accuracy.total) == 1
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(loss.total, (states, weight)))


@pytest.mark.parametrize("labels", [torch.full((4,), IGNORE), torch.zeros(0, dtype=torch.int64)])
def test_nothing_supervised_gives_zero_loss_and_gradients(labels: Tensor) -> None:
    states = torch.randn(len(labels), WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    loss, accuracy = vocabulary_loss(states, weight, None, labels)
    assert float(loss.total.detach()) == int(loss.count) == int(accuracy.total) == 0
    for gradient in torch.autograd.grad(loss.total, (states, weight)):
        assert float(gradient.abs().sum()) == 0


def test_bf16_autocast_is_near_fp32_and_gives_fp32_gradients() -> None:
    states, weight, bias, labels = inputs()
    exact = vocabulary_loss(states, weight, bias, labels)[0].total
    with torch.autocast("cpu", torch.bfloat16):
        rounded = vocabulary_loss(states.bfloat16(), weight, bias, labels)[0].total
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=0)
    pairs = zip(
        torch.autograd.grad(rounded, (states, weight, bias)),
        torch.autograd.grad(exact, (states, weight, bias)),
        strict=True,
    )
    for ours, expected in pairs:
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.05)


class Watch(TorchDispatchMode):
    """Remembers the sizes of all results, and the number of products."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, ...]] = set()
        self.products = 0

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, function, types, args=(), kwargs=None
    ):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.sizes.add(tuple(result.shape))
        self.products += "mm" in str(function)
        return result


def test_d84_logits_are_never_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chunked(monkeypatch, 4)
    states, weight, bias, labels = inputs()
    with Watch() as watch:
        vocabulary_loss(states, weight, bias, labels)[0].total.backward()
    transposed_weight = (WIDTH, VOCABULARY)
    logits = {size for size in watch.sizes - {transposed_weight} if size[1:] == (VOCABULARY,)}
    assert max(rows for rows, _ in logits) == 4


@pytest.mark.parametrize(
    ("prepare", "products"),
    [
        (lambda states, weight: torch.set_grad_enabled(False), 1),
        (lambda states, weight: weight.requires_grad_(False), 2),
        (lambda states, weight: states.requires_grad_(False), 2),
        (lambda states, weight: None, 3),
    ],
    ids=["evaluation", "frozen output layer", "frozen model", "training"],
)
def test_only_needed_gradients_are_computed(
    prepare: Callable[[Tensor, Tensor], object], products: int
) -> None:
    states, weight, _, labels = inputs()
    with torch.enable_grad():
        prepare(states, weight)
        with Watch() as watch:
            vocabulary_loss(states, weight, None, labels)
    assert watch.products == products


def test_an_answer_that_ties_with_others_counts_its_share() -> None:
    states, weight = torch.ones(3, 2), torch.zeros(VOCABULARY, 2)
    weight[[2, 5, 6, 9]] = 1.0
    _, correct = vocabulary_loss(states, weight, None, torch.tensor([5, 3, IGNORE]))
    assert correct.total.item() == pytest.approx(1 / 4)
    assert correct.count.item() == 2


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        states, weight, bias, labels = inputs()
        loss, correct = vocabulary_loss(states, weight, bias, labels)
        return loss.total, correct.total, *torch.autograd.grad(loss.total, (states, weight, bias))

    whole = step()
    monkeypatch.setattr(cross_entropy, "CPU_BLOCK_BYTES", 4 * VOCABULARY * 2)
    torch.testing.assert_close(step(), whole)


def test_classes() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0, IGNORE])
    loss, accuracy = class_loss(logits, labels)
    expected = F.cross_entropy(logits[:2], labels[:2], reduction="sum")
    torch.testing.assert_close(loss.total, expected)
    assert (int(loss.count), int(accuracy.total), int(accuracy.count)) == (2, 1, 2)


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_labels_are_smoothed_as_torch_does(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * 7 * 3)
    states, weight = torch.randn(8, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    labels = torch.tensor([1, 2, IGNORE, 6, 0, 3, 3, IGNORE])
    loss, _ = vocabulary_loss(states, weight, None, labels, smoothing)
    reference = F.cross_entropy(
        states @ weight.T, labels, label_smoothing=smoothing, reduction="sum"
    )
    torch.testing.assert_close(loss.total, reference)
    ours = torch.autograd.grad(loss.total, (states, weight))
    for mine, theirs in zip(ours, torch.autograd.grad(reference, (states, weight)), strict=True):
        torch.testing.assert_close(mine, theirs)
