"""Convolutions over frames: layouts, padding, gates, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.embeddings.speech import FramesEmbedding, shortened
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import Layout, Stream
from tests.helpers.models import layout_of, randomise

LENGTHS = (21, 8, 15, 1)
STACKS: list[dict[str, Any]] = [
    {"channels": 12, "scale": True},
    {"kernels": [3, 3], "strides": [1, 2], "activation": "gelu"},
    {"kernels": [7, 3, 5], "strides": [3, 2, 2], "channels": 6},
    {"kernels": [1], "strides": [1]},
]
each_stack = pytest.mark.parametrize("keys", STACKS)


def part(**keys: Any) -> FramesEmbedding:
    config = decode(FramesEmbedding.Config, {"name": "frames", "bands": 10, **keys})
    module = FramesEmbedding(config, Sizes(16, 16, 1))
    randomise(module)
    return module


def embed(module: FramesEmbedding, frames: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
    stream = Stream({"frames": frames}, layout)
    found = module.layout(stream)
    return module(stream, found), found


@each_stack
def test_padding_changes_no_real_position(keys: dict[str, Any]) -> None:
    module = part(**keys)
    frames = torch.randn(4, 21, 10)
    states, layout = embed(module, frames, layout_of(LENGTHS))
    for row, length in enumerate(LENGTHS):
        alone, full = embed(module, frames[row : row + 1, :length], layout_of([length]))
        count = int(layout.valid[row].sum())
        assert full.is_full
        assert alone.shape[1] == count
        torch.testing.assert_close(states[row, :count], alone[0], rtol=1e-5, atol=1e-6)


@each_stack
def test_gradients_do_not_reach_padding(keys: dict[str, Any]) -> None:
    module = part(**keys)
    frames = torch.randn(4, 21, 10, requires_grad=True)
    layout = layout_of(LENGTHS)
    states, shorter = embed(module, frames, layout)
    states[shorter.valid].sum().backward()
    assert frames.grad is not None
    assert not frames.grad[~layout.valid].any()


@each_stack
def test_the_layout_is_that_of_the_states(keys: dict[str, Any]) -> None:
    states, layout = embed(part(**keys), torch.randn(4, 21, 10), layout_of(LENGTHS))
    assert layout.valid.shape == states.shape[:2]
    assert layout.tokens is not None
    assert torch.equal(layout.tokens, layout.valid.flatten().nonzero().squeeze(1))


def test_lengths_known_on_the_host_give_the_same_layout() -> None:
    for step in (1, 2, 4, 6):
        layout = layout_of(LENGTHS, 24)
        asked = shortened(layout, step)
        layout.lengths = LENGTHS
        told = shortened(layout, step)
        assert torch.equal(told.valid, asked.valid)
        assert told.tokens is not None
        assert asked.tokens is not None
        assert torch.equal(told.tokens, asked.tokens)
        assert told.lengths == tuple(int(row.sum()) for row in told.valid)


def test_rows_that_become_alike_have_no_padding() -> None:
    layout = layout_of((7, 8), 8)
    layout.lengths = (7, 8)
    assert shortened(layout, 4).is_full


def test_torch_starts_the_convolutions() -> None:
    """Kaiming's bounds with a = sqrt(5), as in what is published: 1 / sqrt(inputs x kernel)."""
    config = decode(FramesEmbedding.Config, {"name": "frames"})
    module = FramesEmbedding(config, Sizes(64, 64, 1))
    for convolution in module.layers:
        assert isinstance(convolution, torch.nn.Conv1d)
        bound = (convolution.in_channels * convolution.kernel_size[0]) ** -0.5
        assert bound * 0.95 < convolution.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kernels": [4, 5]}, "kernels must be odd"),
        ({"kernels": [5]}, "strides must be as many"),
        ({"kernels": [], "strides": []}, "strides must be as many"),
        ({"channels": 7}, "channels must be even"),
        ({"strides": [2, 0]}, "strides"),
        ({"bands": 0}, "bands"),
    ],
)
def test_wrong_stacks_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(FramesEmbedding.Config, {"name": "frames", **keys})
