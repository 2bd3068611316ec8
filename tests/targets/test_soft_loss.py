"""Hard and soft loss over an output layer, in chunks.

Shapes: 13 positions, three of which are not supervised; widths 6 and 5; 31 entries.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.distill.answers import Answer, StatesAnswer, TopAnswer
from tencentpretrain.distill.divergences import divergence_of
from tencentpretrain.distill.outcomes import Scratch
from tencentpretrain.distill.stored import top_of
from tencentpretrain.targets import cross_entropy, soft_loss
from tencentpretrain.targets.soft_loss import Head, Terms, distillation_loss
from tencentpretrain.types import IGNORE
from tests.helpers.distill import KEYS, divergence, plain
from tests.targets.test_cross_entropy import Watch

ROWS, WIDTH, TEACHER_WIDTH, VOCABULARY = 13, 6, 5, 31


class Case:
    """A student with its output layer, and what its teacher says."""

    def __init__(self, dtype: torch.dtype = torch.float64, extra: int = 0) -> None:
        self.states = torch.randn(ROWS, WIDTH, dtype=dtype).requires_grad_()
        self.weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype).requires_grad_()
        self.bias = torch.randn(VOCABULARY, dtype=dtype).requires_grad_()
        self.labels = torch.randint(VOCABULARY, (ROWS,))
        self.labels[[0, 7, 12]] = IGNORE
        self.kept = self.labels != IGNORE
        rows = VOCABULARY + extra
        self.answer = StatesAnswer(
            torch.randn(ROWS, TEACHER_WIDTH, dtype=dtype),
            torch.randn(rows, TEACHER_WIDTH, dtype=dtype),
            torch.randn(rows, dtype=dtype),
            VOCABULARY,
        )

    @property
    def tensors(self) -> list[Tensor]:
        return [self.states, self.weight, self.bias]

    def teacher_logits(self) -> Tensor:
        answer = self.answer
        assert answer.weight is not None
        return F.linear(answer.states, answer.weight, answer.bias)[:, :VOCABULARY]

    def logits(self) -> tuple[Tensor, Tensor]:
        """Of the student and of the teacher, at the supervised positions."""
        student = F.linear(self.states[self.kept], self.weight, self.bias)
        return student, self.teacher_logits()[self.kept]

    def loss(self, terms: Terms, answer: Answer | None = None) -> tuple[Tensor, dict[str, Any]]:
        head = Head(self.weight, self.bias)
        loss, figures = distillation_loss(
            self.states, head, self.labels, answer or self.answer, terms
        )
        assert int(loss.count) == ROWS - 3
        return loss.total, figures


def chunked(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    chunks = [slice(start, start + rows) for start in range(0, ROWS, rows)]
    monkeypatch.setattr("tencentpretrain.targets.soft_loss.row_chunks", lambda *sizes: chunks)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("rows", [4, ROWS])
@pytest.mark.parametrize("name", sorted(KEYS))
def test_loss_and_gradients_are_those_of_whole_logits(
    name: str, rows: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunked(monkeypatch, rows)
    case = Case(extra=3)
    terms = Terms(divergence(name, **KEYS[name]), 0.3, temperature, temperature**2, 0.1)
    total, figures = case.loss(terms)
    student, teacher = case.logits()
    hard = F.cross_entropy(student, case.labels[case.kept], label_smoothing=0.1, reduction="none")
    soft = plain(name, teacher / temperature, student / temperature)
    expected = (0.7 * hard + 0.3 * temperature**2 * soft).sum()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(figures["ce"].total, hard.sum())
    torch.testing.assert_close(figures["divergence"].total, soft.sum())
    assert int(figures["accuracy"].total) == int(
        (student.argmax(-1) == case.labels[case.kept]).sum()
    )
    ours = torch.autograd.grad(total * 0.7, case.tensors)
    theirs = torch.autograd.grad(expected * 0.7, case.tensors)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", sorted([*KEYS, "akl"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_and_blocks_change_nothing(
    dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, results = Case(dtype), []
    for rows, block in ((ROWS, 1 << 20), (5, 1)):
        chunked(monkeypatch, rows)
        monkeypatch.setattr(soft_loss, "BLOCK_BYTES", block)
        total, figures = case.loss(Terms(divergence(name, **KEYS.get(name, {}))))
        sums = [figure.total for figure in figures.values()]
        results.append([total.detach(), *sums, *torch.autograd.grad(total, case.tensors)])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["akl", "fkl"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_blocks_share_their_memory(
    temperature: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New memory for every block would cost more than what is computed in it."""
    monkeypatch.setattr(soft_loss, "BLOCK_BYTES", 1)
    taken = []

    def counted(scratch: Scratch, name: str, shape: torch.Size) -> Tensor:
        memory = given(scratch, name, shape)
        taken.append((name, memory.data_ptr()))
        return memory

    given = Scratch.__call__
    monkeypatch.setattr(Scratch, "__call__", counted)
    case = Case(torch.float32)
    case.loss(Terms(divergence(name), temperature=temperature))
    names = {one for one, _ in taken}
    assert len(set(taken)) == len({place for _, place in taken}) == len(names)
    assert len(taken) == ROWS * len(names)


def test_memory_that_is_too_small_is_replaced() -> None:
    scratch = Scratch(torch.float32, torch.device("cpu"))
    first = scratch("one", torch.Size((2, 3)))
    assert scratch("one", torch.Size((1, 3))).data_ptr() == first.data_ptr()
    assert scratch("two", torch.Size((2, 3))).data_ptr() != first.data_ptr()
    assert scratch("one", torch.Size((4, 3))).shape == (4, 3)


def test_the_loss_is_the_sum_over_supervised_positions_one_by_one() -> None:
    case, chosen = Case(), divergence("akl")
    _, figures = case.loss(Terms(chosen))
    one_by_one = 0.0
    for student, teacher in zip(*case.logits(), strict=True):
        one_by_one += float(divergence_of(student[None], teacher[None], chosen).detach())
    ratio = figures["divergence"]
    assert float(ratio.total) / int(ratio.count) == pytest.approx(one_by_one / (ROWS - 3))


@pytest.mark.parametrize("name", ["akl", "rkl", "mse"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_stands_at_other_positions_changes_nothing(name: str, value: float) -> None:
    results = []
    for filled in (0.0, value):
        torch.manual_seed(3)
        case = Case()
        with torch.no_grad():
            case.states[~case.kept] = filled
            case.answer.states[~case.kept] = filled
        total, _ = case.loss(Terms(divergence(name)))
        results.append([total, *torch.autograd.grad(total, case.tensors)])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("labels", [torch.full((4,), IGNORE), torch.zeros(0, dtype=torch.int64)])
def test_without_a_supervised_position_the_loss_is_zero_and_has_a_graph(labels: Tensor) -> None:
    states = torch.randn(len(labels), WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    answer = StatesAnswer(torch.randn(len(labels), VOCABULARY))
    terms = Terms(divergence("akl"))
    loss, figures = distillation_loss(states, Head(weight), labels, answer, terms)
    assert float(loss.total.detach()) == int(loss.count) == 0
    assert all(float(figure.value) == 0 for figure in figures.values())
    for gradient in torch.autograd.grad(loss.total, (states, weight)):
        assert float(gradient.abs().sum()) == 0


def test_the_teacher_gets_no_gradient() -> None:
    case = Case()
    answer = StatesAnswer(
        case.answer.states.clone().requires_grad_(), case.answer.weight, entries=VOCABULARY
    )
    total, _ = case.loss(Terms(divergence("akl"), ratio=1.0), answer)
    total.backward()
    assert answer.states.grad is None


def test_soft_labels_alone_take_no_gradient_from_the_labels() -> None:
    case = Case()
    total, _ = case.loss(Terms(divergence("fkl"), ratio=1.0))
    ours = torch.autograd.grad(total, case.tensors)
    student, teacher = case.logits()
    theirs = torch.autograd.grad(plain("fkl", teacher, student).sum(), case.tensors)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_classes_are_compared_as_logits() -> None:
    logits, teacher = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.randn(6, 4)
    labels = torch.tensor([1, 0, IGNORE, 3, 2, 2])
    answer = StatesAnswer(teacher.double())
    terms = Terms(divergence("jsd", **KEYS["jsd"]), 0.6, 3.0)
    loss, figures = distillation_loss(logits, Head(), labels, answer, terms)
    kept = labels != IGNORE
    soft = plain("jsd", teacher[kept].double() / 3, logits[kept] / 3)
    expected = 0.4 * F.cross_entropy(logits[kept], labels[kept], reduction="sum") + 0.6 * soft.sum()
    torch.testing.assert_close(loss.total, expected)
    (ours,), (theirs,) = (torch.autograd.grad(total, logits) for total in (loss.total, expected))
    torch.testing.assert_close(ours, theirs)
    assert int(figures["accuracy"].count) == 5


def stored(case: Case, count: int) -> TopAnswer:
    answer = StatesAnswer(case.teacher_logits(), entries=VOCABULARY)
    top = top_of(answer, count)
    double = case.teacher_logits().log_softmax(-1).gather(1, top["ids"])
    rest = (1 - double.exp().sum(-1)).log() if count < VOCABULARY else top["rest"]
    return TopAnswer(top["ids"], double, rest, VOCABULARY)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", [*sorted(set(KEYS) - {"mse"}), "akl", "akl_topk"])
def test_a_stored_teacher_that_tells_everything_is_the_teacher(
    name: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunked(monkeypatch, 5)
    case = Case()
    terms = Terms(divergence(name, **KEYS.get(name, {})), 0.5, temperature)
    answer = stored(case, VOCABULARY)
    assert answer.knows_all
    results = []
    for one in (case.answer, answer):
        total, figures = case.loss(terms, one)
        sums = [figure.total for figure in figures.values()]
        results.append([total, *sums, *torch.autograd.grad(total, case.tensors)])
    for online, offline in zip(*results, strict=True):
        torch.testing.assert_close(online, offline)


@pytest.mark.parametrize("name", sorted(set(KEYS) - {"mse"}))
def test_what_a_stored_teacher_does_not_tell_is_one_outcome(name: str) -> None:
    case = Case()
    answer = stored(case, 4)
    assert not answer.knows_all
    total, figures = case.loss(Terms(divergence(name, **KEYS[name]), 1.0), answer)
    student, teacher = case.logits()
    ids = answer.ids[case.kept]
    coarse = []
    for logits in (teacher, student):
        told = logits.log_softmax(-1).gather(1, ids)
        others = logits.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        coarse.append(torch.cat([told, others - logits.logsumexp(-1, keepdim=True)], -1))
    expected = plain(name, *coarse).sum()
    torch.testing.assert_close(total, expected)
    for ours, theirs in zip(
        torch.autograd.grad(total, case.tensors),
        torch.autograd.grad(expected, case.tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    whole = plain(name, teacher, student).sum()
    assert float(figures["divergence"].total) <= float(whole.detach()) + 1e-9


def test_stored_entries_are_the_likeliest_with_the_mass_of_the_rest() -> None:
    case = Case(torch.float32)
    answer = StatesAnswer(case.teacher_logits(), entries=VOCABULARY)
    top = top_of(answer, 5)
    p = case.teacher_logits().softmax(-1)
    torch.testing.assert_close(top["scores"].exp(), p.topk(5).values)
    torch.testing.assert_close(top["rest"].exp() + top["scores"].exp().sum(-1), torch.ones(ROWS))


@pytest.mark.parametrize("name", ["akl", "fkl", "mse"])
def test_logits_of_neither_model_are_ever_there_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A chunk is at least half as large as the weight.
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 1)
    case = Case(torch.float32)
    with Watch() as watch:
        case.loss(Terms(divergence(name)))[0].backward()
    weights = {tuple(case.weight.T.shape), tuple(case.answer.weight.T.shape)}  # type: ignore[union-attr]
    rows = {size[0] for size in watch.sizes - weights if size[1:] == (VOCABULARY,)}
    assert rows - {VOCABULARY} == {3, 1}


@pytest.mark.parametrize(("trained", "products"), [((), 2), ((0,), 3), ((1,), 3), ((0, 1), 4)])
def test_only_needed_gradients_are_computed(trained: tuple[int, ...], products: int) -> None:
    case = Case(torch.float32)
    for number, tensor in enumerate(case.tensors):
        tensor.requires_grad_(number in trained)
    with Watch() as watch:
        case.loss(Terms(divergence("tv")))
    assert watch.products == products


def test_bf16_autocast_is_near_fp32_and_gives_fp32_gradients() -> None:
    case = Case(torch.float32)
    terms = Terms(divergence("akl"))
    exact, _ = case.loss(terms)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = case.loss(terms)
    torch.testing.assert_close(rounded, exact, rtol=3e-2, atol=0)
    for ours, expected in zip(
        torch.autograd.grad(rounded, case.tensors),
        torch.autograd.grad(exact, case.tensors),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.1)
