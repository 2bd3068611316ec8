import pytest
import torch
import torch.nn.functional as F

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS
from tencentpretrain.targets.bilm import BilmTarget
from tencentpretrain.types import IGNORE, Batch, Hidden, Labels, ModelOutput, Stream
from tests.helpers.models import layout_of, randomise

LENGTHS = (6, 2, 4)


def target_of(hidden: int = 8, **keys: bool) -> BilmTarget:
    config = decode(BilmTarget.Config, {"name": "bilm", **keys})
    target = TARGETS.build(config, Sizes(hidden, hidden, 20), "bilm")
    assert isinstance(target, BilmTarget)
    randomise(target)
    return target


def output_of() -> ModelOutput:
    layout = layout_of(LENGTHS)
    states = (torch.randn(3, 6, 8) * layout.valid[..., None]).requires_grad_()
    return ModelOutput(Hidden(states, layout), {})


def batch_of(labels: Labels | None = None) -> Batch:
    stream = Stream({}, layout_of(LENGTHS))
    return Batch({"src": stream}, {} if labels is None else {"bilm": labels})


@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_is_that_of_two_language_models_with_one_output_layer(bias: bool) -> None:
    target, out = target_of(bias=bias), output_of()
    ids = torch.randint(20, (3, 6))
    following, preceding = [], []
    for row, length in enumerate(LENGTHS):
        following += [(row, position) for position in range(length - 1)]
        preceding += [(row, position) for position in range(1, length)]
    rows, positions = (torch.tensor(list(part)) for part in zip(*following, strict=True))
    later_rows, later = (torch.tensor(list(part)) for part in zip(*preceding, strict=True))
    place, later_place = rows * 6 + positions, later_rows * 6 + later
    values = torch.cat([ids[rows, positions + 1], ids[later_rows, later - 1]])
    labels = Labels(values, torch.cat([2 * place, 2 * later_place + 1]))
    states = out.hidden.states
    logits = torch.cat(
        [
            F.linear(half, target.output.weight, target.output.bias)
            for half in (states[rows, positions, :4], states[later_rows, later, 4:])
        ]
    )
    result = target(out, batch_of(labels))
    loss, accuracy = result.losses["bilm"], result.metrics["bilm/accuracy"]
    expected = F.cross_entropy(logits, values, reduction="sum")
    torch.testing.assert_close(loss.total, expected)
    assert int(loss.count) == int(target.units(batch_of(labels))) == 2 * sum(n - 1 for n in LENGTHS)
    assert int(accuracy.total) == int((logits.argmax(-1) == values).sum())
    assert int(accuracy.count) == len(values)
    torch.testing.assert_close(target.logits(out, batch_of(labels)), logits)
    wanted = [states, *target.parameters()]
    for one, other in zip(
        torch.autograd.grad(loss.total, wanted), torch.autograd.grad(expected, wanted), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_labels_on_the_whole_grid_are_the_same() -> None:
    target, out = target_of(), output_of()
    index, values = torch.tensor([0, 3, 13, 30]), torch.tensor([4, 19, 0, 7])
    grid = torch.full((3, 6, 2), IGNORE)
    grid.view(-1)[index] = values
    chosen, everywhere = (
        target(out, batch_of(labels)).losses["bilm"]
        for labels in (Labels(values, index), Labels(grid))
    )
    torch.testing.assert_close(chosen.total, everywhere.total)
    assert int(chosen.count) == int(everywhere.count) == 4
    assert target.logits(out, batch_of()).shape == (36, 20)


def test_an_odd_width_has_no_halves() -> None:
    with pytest.raises(ConfigError, match=r"model.hidden: must be even .* target.bilm, but is 7"):
        target_of(hidden=7)
