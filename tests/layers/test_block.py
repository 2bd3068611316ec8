from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tencentpretrain.layers.activation import build_activation
from tencentpretrain.layers.attention import HeadShape, View
from tencentpretrain.layers.block import BlockConfig, TransformerBlock
from tencentpretrain.layers.feed_forward import FeedForward, GatedFeedForward
from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.mask import build_mask
from tencentpretrain.layers.norm import build_norm
from tencentpretrain.types import Layout
from tests.helpers.models import layout_of, randomise


def block_of(**changes: Any) -> TransformerBlock:
    options: dict[str, Any] = {
        "norm_eps": 1e-5,
    }
    block = TransformerBlock(BlockConfig(16, HeadShape(2, 2, 8), 24, **(options | changes)))
    randomise(block)
    return block


def view_of(layout: Layout) -> View:
    grid = HeadGrid(layout, 2)
    return View(grid, grid, build_mask("full", layout))


@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_block_is_the_layer_of_torch(order: str) -> None:
    ours = block_of(norm_order=order)
    theirs = nn.TransformerEncoderLayer(
        16, 2, 24, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=order == "pre"
    )
    attention = ours.attention
    projections = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    theirs.self_attn.out_proj.load_state_dict(attention.output.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
    theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
    theirs.norm2.load_state_dict(ours.feed_forward_norm.state_dict())
    layout = layout_of((6, 4))
    states = torch.randn(2, 6, 16)
    view = view_of(layout)
    output = view.queries.pad(ours(view.queries.unpad(states), view).states)
    expected = theirs(states, src_key_padding_mask=~layout.valid)
    valid = layout.valid
    torch.testing.assert_close(output[valid], expected[valid], rtol=1e-5, atol=1e-5)


def test_both_updates_are_dropped_out() -> None:
    block = block_of(dropout=0.999, norm_order="pre")
    layout = layout_of((6, 6))
    states = torch.randn(12, 16)
    output = block(states, view_of(layout)).states
    assert float((output == states).double().mean()) > 0.95


def test_residual_outputs_are_the_layers_that_add_to_the_stream() -> None:
    block = block_of()
    assert block.residual_outputs() == (block.attention.output, block.feed_forward.down)


def test_feed_forward_without_biases_has_two_matrices() -> None:
    shapes = [tuple(p.shape) for p in FeedForward(4, 6, "relu", has_bias=False).parameters()]
    assert shapes == [(6, 4), (4, 6)]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu", F.gelu),
        ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
        ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
        ("relu", torch.relu),
        ("silu", F.silu),
        ("tanh", torch.tanh),
    ],
)
def test_activations(name: Any, function: Any) -> None:
    states = torch.randn(100)
    assert torch.equal(build_activation(name)(states), function(states))


def test_norms() -> None:
    states = torch.randn(3, 8)
    layer, rms = build_norm("layer", 8, 0.5), build_norm("rms", 8, 0.5)
    centred = states - states.mean(-1, keepdim=True)
    root = (centred.square().mean(-1, keepdim=True) + 0.5).sqrt()
    torch.testing.assert_close(layer(states), centred / root)
    torch.testing.assert_close(
        rms(states), states / (states.square().mean(-1, keepdim=True) + 0.5).sqrt()
    )
    assert build_norm("none", 8, 0.5)(states) is states


def test_other_norms() -> None:
    states = torch.randn(3, 8)
    torch.testing.assert_close(build_norm("t5", 8, 0.5)(states), build_norm("rms", 8, 0.5)(states))
    gain = build_norm("layer_gain", 8, 0.5)
    assert [name for name, _ in gain.named_parameters()] == ["weight"]
    torch.testing.assert_close(gain(states), build_norm("layer", 8, 0.5)(states))


def test_d24_the_norm_of_old_checkpoints_divides_by_the_unbiased_deviation() -> None:
    states, legacy = torch.randn(3, 8), build_norm("legacy", 8, 0.5)
    randomise(legacy)
    centred = states - states.mean(-1, keepdim=True)
    deviation = (centred.square().sum(-1, keepdim=True) / 7).sqrt()
    expected = legacy.weight * centred / (deviation + 0.5) + legacy.bias
    torch.testing.assert_close(legacy(states), expected)


def test_a_gated_layer_multiplies_by_its_activated_gate() -> None:
    layer, states = GatedFeedForward(4, 6, "silu"), torch.randn(5, 4)
    inner = F.silu(layer.gate(states)) * layer.up(states)
    torch.testing.assert_close(layer(states), layer.down(inner))
