"""Losses of the rows from each source of a mixture."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.config import decode
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Targets
from tencentpretrain.types import IGNORE, Batch, Hidden, Labels, ModelOutput, Origin, Stream
from tests.helpers.models import layout_of, randomise

LENGTHS = (6, 2, 4)
SIZES = Sizes(hidden=8, embedding=4, vocabulary=20)
NAMES, NUMBERS = ("news", "books", "code"), torch.tensor([1, 0, 1])
"""There is no row of the last one."""
PLACES = torch.tensor([0, 3, 6, 7, 13, 15])
CASES: dict[str, tuple[dict[str, Any], Labels]] = {
    "mlm": ({}, Labels(torch.tensor([3, IGNORE, 0, 7, 5, 1]), PLACES)),
    "lm": ({"label_smoothing": 0.1}, Labels(torch.arange(18).view(3, 6))),
    "bilm": ({}, Labels(torch.arange(6), 2 * PLACES + 1, 12)),
    "tag": ({"classes": 8, "dropout": 0}, Labels(torch.tensor([1, 2, 3, 4, 5, 6]), PLACES)),
    "span": ({}, Labels(torch.tensor([[1, 4], [IGNORE, IGNORE], [0, 3]]))),
    "nsp": ({}, Labels(torch.tensor([1, 0, IGNORE]))),
    "classify": ({"classes": 3}, Labels(torch.rand(3, 3).softmax(-1))),
}


def targets_of(**keys: dict[str, Any]) -> Targets:
    configs = {
        name: decode(TARGETS.config_class(name), {"name": name} | values)
        for name, values in keys.items()
    }
    targets = Targets(configs, SIZES)
    randomise(targets)
    return targets.eval()


def batch_of(origin: Origin | None, **labels: Labels) -> Batch:
    return Batch({"src": Stream({}, layout_of(LENGTHS))}, labels, origin=origin)


def output_of() -> ModelOutput:
    return ModelOutput(Hidden(torch.randn(3, 6, 8), layout_of(LENGTHS)), {})


def without(labels: Labels, rows: Tensor) -> Labels:
    """`labels` of which those outside of `rows` [B] bool are ignored."""
    values = labels.values
    if labels.index is None:
        kept = rows.view(-1, *[1] * (values.dim() - 1))
    else:
        kept = rows[labels.index // (labels.width or 6)]
    return replace(labels, values=values.masked_fill(~kept, IGNORE))


@pytest.mark.parametrize("name", CASES)
def test_a_part_is_the_loss_of_its_rows_alone(name: str) -> None:
    keys, labels = CASES[name]
    targets, out = targets_of(**{name: keys}), output_of()
    with torch.autocast("cpu", torch.bfloat16):
        result = targets(out, batch_of(Origin(NAMES, NUMBERS), **{name: labels}))
        assert list(result.parts) == list(NAMES)
        totals = torch.stack([part.losses[name].total for part in result.parts.values()])
        counts = torch.stack([part.losses[name].count for part in result.parts.values()])
        assert not totals.requires_grad
        torch.testing.assert_close(totals.sum(), result.losses[name].total.detach())
        assert int(counts.sum()) == int(result.losses[name].count)
        assert (totals[2], counts[2]) == (0, 0)
        if labels.values.is_floating_point():
            return
        for number, (total, count) in enumerate(zip(totals, counts, strict=True)):
            alone = batch_of(None, **{name: without(labels, number == NUMBERS)})
            expected = targets(out, alone).losses[name]
            torch.testing.assert_close(total, expected.total.detach())
            assert int(count) == int(expected.count)


def test_all_targets_of_a_model_are_in_each_part() -> None:
    targets = targets_of(mlm={}, nsp={})
    labels = {name: CASES[name][1] for name in ("mlm", "nsp")}
    result = targets(output_of(), batch_of(Origin(NAMES, NUMBERS), **labels))
    assert all(list(part.losses) == ["mlm", "nsp"] for part in result.parts.values())
    assert not targets(output_of(), batch_of(None, **labels)).parts


def test_losses_that_are_not_of_single_rows_have_no_parts() -> None:
    targets, layout = targets_of(contrast={"streams": ["a", "b"]}), layout_of(LENGTHS)
    sides = {name: Hidden(torch.randn(3, 6, 8), layout) for name in ("a", "b")}
    batch = Batch({n: Stream({}, layout) for n in sides}, origin=Origin(NAMES, NUMBERS))
    assert not targets(ModelOutput(sides["a"], sides), batch).parts
