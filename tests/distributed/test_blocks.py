"""Blocks that are computed again give the gradients of those that are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

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
