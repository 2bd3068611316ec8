"""Blocks that are computed again or compiled give the gradients of those that are not."""

from __future__ import annotations

import copy
from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import nn

from tencentpretrain.distributed.blocks import BlockOptions, RecomputeName
from tests.helpers.models import randomise, text_batch, tiny_model, total_loss


@pytest.mark.parametrize("kind", ["full", "selective"])
@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.3},
        {"relative": {"buckets": 8, "distance": 16}},
        {"alibi": True, "attention_dropout": 0.3},
        {"residual_attention": True},
    ],
)
def test_gradients_are_those_of_one_pass(changes: dict[str, Any], kind: RecomputeName) -> None:
    once = tiny_model("bert/tiny", {"encoder": changes}).train()
    randomise(once)
    again = copy.deepcopy(once)
    BlockOptions(kind).apply(again)
    for model in (once, again):
        torch.manual_seed(1)
        total_loss(model(text_batch((5, 3)))).backward()
    pairs = zip(once.named_parameters(), again.parameters(), strict=True)
    for (name, one), other in pairs:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.filterwarnings("ignore")  # torch warns of what its own tracing does
@pytest.mark.parametrize(
    ("name", "targets", "changes"),
    [
        ("gpt2/tiny", ("lm",), {}),
        ("bert/tiny", ("mlm", "nsp"), {"rotary": {}, "kv_heads": 1, "norm": "rms", "gated": True}),
    ],
)
def test_compiled_blocks_are_one_graph_with_the_gradients_of_plain_ones(
    name: str, targets: tuple[str, ...], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # All but the writing of kernels, which needs a compiler; what cannot be traced is an error.
    traced = partialmethod(nn.Module.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", traced)
    torch._dynamo.reset()
    plain = tiny_model(name, {"encoder": {"dropout": 0.0, "layers": 1, **changes}}).train()
    randomise(plain)
    compiled = copy.deepcopy(plain)
    BlockOptions(compiles=True).apply(compiled)
    for lengths in ((7, 7), (70, 9)):
        for model in (plain, compiled):
            model.zero_grad()
            torch.manual_seed(1)
            total_loss(model(text_batch(lengths, targets))).backward()
        pairs = zip(plain.named_parameters(), compiled.parameters(), strict=True)
        for (parameter, one), other in pairs:
            torch.testing.assert_close(
                one.grad, other.grad, rtol=1e-5, atol=1e-6, msg=f"{parameter} {lengths}"
            )
