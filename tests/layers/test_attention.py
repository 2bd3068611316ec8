from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.layers import attend as products
from tencentpretrain.layers.attend import attend, attend_densely
from tencentpretrain.layers.attention import HeadShape, SelfAttention, View
from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.mask import AttentionMask, build_mask
from tencentpretrain.types import Layout
from tests.helpers.models import layout_of

LENGTHS = (7, 3, 5)


def heads(length: int = 7, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(3, 2, length, 4, dtype=dtype, requires_grad=True) for _ in range(3)]


def attention_of(hidden: int, heads: int, rate: float = 0.0, **options: Any) -> SelfAttention:
    return SelfAttention(hidden, HeadShape(heads, heads, hidden // heads), rate=rate, **options)


def view_of(layout: Layout, heads: int) -> View:
    grid = HeadGrid(layout, heads)
    return View(grid, grid, build_mask("full", layout))


def masks() -> dict[str, AttentionMask]:
    documents = torch.tensor([[0, 0, 1, 1, 1, 2, 2]]).expand(3, -1)
    prefix = torch.tensor([2, 1, 3])
    padded, full = layout_of(LENGTHS), layout_of((7, 7, 7))
    return {
        "everything": build_mask("full", full),
        "padding": build_mask("full", padded),
        "causal": build_mask("causal", full),
        "causal and padding": build_mask("causal", padded),
        "prefix": build_mask("prefix", layout_of(LENGTHS, prefix=prefix)),
        "documents": build_mask("causal", layout_of(LENGTHS, documents=documents)),
    }


@pytest.mark.parametrize("name", masks())
def test_all_ways_to_attend_agree_with_their_gradients(name: str) -> None:
    mask = masks()[name]
    query, key, value = heads()
    weights = torch.randn(3, 2, 7, 4)

    def gradients(context: Tensor) -> tuple[Tensor, ...]:
        return context, *torch.autograd.grad((context * weights).sum(), (query, key, value))

    reference = gradients(
        F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask.allowed, is_causal=mask.is_causal
        )
    )
    for context in (attend(query, key, value, mask), attend_densely(query, key, value, mask)[0]):
        for ours, expected in zip(gradients(context), reference, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_long_rows_on_a_cpu_go_to_the_kernel_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = heads()
    short = attend(query, key, value, AttentionMask())
    monkeypatch.setattr(products, "CPU_DENSE_LENGTH", 3)
    long = attend(query, key, value, AttentionMask())
    assert type(short.grad_fn) is not type(long.grad_fn)
    torch.testing.assert_close(short, long)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("name", ["everything", "causal and padding"])
def test_gradients_on_a_cpu_are_derivatives(name: str, rate: float) -> None:
    def function(*pieces: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attend(*pieces, masks()[name], rate)

    assert torch.autograd.gradcheck(function, heads(dtype=torch.float64), fast_mode=True)


def test_queries_may_be_more_or_fewer_than_keys() -> None:
    query, key, value = heads()
    context = attend(query[:, :, :2], key, value, AttentionMask())
    everything = attend(query, key, value, AttentionMask())
    torch.testing.assert_close(context, everything[:, :, :2])
    assert torch.autograd.grad(context.sum(), key)[0].shape == key.shape


def test_dropped_probabilities_keep_their_expectation() -> None:
    query, key = torch.randn(2, 400, 2, 6, 4)
    value = torch.randn(400, 2, 6, 4)
    mean = attend(query[:1], key[:1], value[:1], AttentionMask())
    same = [pieces[:1].expand(400, -1, -1, -1) for pieces in (query, key, value)]
    dropped = attend(*same, AttentionMask(), 0.25)
    assert not torch.allclose(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), mean[0], atol=0.15, rtol=0)


def test_probabilities_are_wanted_before_dropout_and_add_up_to_one() -> None:
    query, key, value = heads()
    _, probabilities, _ = attend_densely(query, key, value, masks()["padding"], 0.5)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 2, 7))
    assert float(probabilities[1, :, :, 3:].detach().abs().max()) == 0


def test_bf16_autocast_is_near_fp32() -> None:
    attend_all = attention_of(16, 2)
    view = view_of(layout_of(LENGTHS), 2)
    states = torch.randn(view.queries.count, 16, requires_grad=True)
    results = []
    for is_enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
            output = attend_all(states, view).states
        assert output.dtype == (torch.bfloat16 if is_enabled else torch.float32)
        results.append((output.float(), *torch.autograd.grad(output.float().sum(), states)))
    for exact, rounded in zip(*results, strict=True):
        torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02)


def test_self_attention_is_that_of_torch() -> None:
    ours = attention_of(16, 4)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    projections = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in projections]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in projections]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    layout = layout_of(LENGTHS)
    states = torch.randn(3, 7, 16)
    view = view_of(layout, 4)
    rows = view.queries.unpad(states)
    output, probabilities, _ = ours(rows, view, is_wanted=True)
    expected, weights = theirs(
        states, states, states, key_padding_mask=~layout.valid, average_attn_weights=False
    )
    for found in (output, ours(rows, view).states):
        padded = view.queries.pad(found)
        torch.testing.assert_close(padded[layout.valid], expected[layout.valid])
        assert not padded[~layout.valid].any()
    assert probabilities is not None
    valid = layout.valid[:, None, :, None].expand_as(weights)
    torch.testing.assert_close(probabilities[valid], weights[valid])


def test_attention_is_dropped_only_while_training() -> None:
    layer = attention_of(16, 2, 0.5)
    view = view_of(layout_of(LENGTHS), 2)
    arguments = torch.randn(view.queries.count, 16), view
    assert not torch.equal(layer(*arguments)[0], layer(*arguments)[0])
    layer.eval()
    assert torch.equal(layer(*arguments)[0], layer(*arguments)[0])


def test_biases_are_optional() -> None:
    layer = attention_of(8, 2, has_bias=False, has_qkv_bias=False)
    names = [name for name, _ in layer.named_parameters()]
    assert names == [f"{layer}.weight" for layer in ("query", "key", "value", "output")]
