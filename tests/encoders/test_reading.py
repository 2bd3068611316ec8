"""What holds for all encoders that read rows from one end to the other."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.config import decode
from tencentpretrain.encoders.base import ENCODERS, Encoder
from tencentpretrain.encoders.reading import reading_orders
from tencentpretrain.errors import DataError
from tencentpretrain.layers.padding import pad, unpad
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import Layout, Want
from tests.helpers.models import layout_of, randomise

TWO = {"directions": 2}
SEPARATE = {"directions": 2, "separate": True}
KINDS: dict[str, dict[str, Any]] = {
    "rnn": {"name": "rnn"},
    "lstm": {"name": "lstm"},
    "gru": {"name": "gru"},
    "rnn separate": {"name": "rnn", **SEPARATE},
    "lstm joint": {"name": "lstm", **TWO},
    "lstm separate": {"name": "lstm", **SEPARATE},
    "gru joint": {"name": "gru", **TWO},
    "gated_cnn": {"name": "gated_cnn", "layers": 5, "kernel_size": 3},
}
LENGTHS = (7, 3, 0, 5)
RIGHT = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
VALID = {
    "right": RIGHT,
    "left": RIGHT.flip(1),
    "both": torch.stack([RIGHT[0], RIGHT[1].roll(2), RIGHT[2], RIGHT[3].roll(1)]),
}


def encoder_of(kind: str, **keys: Any) -> Encoder:
    data = {"layers": 3, "dropout": 0.0} | KINDS[kind] | keys
    encoder = ENCODERS.build(decode(ENCODERS.config_class(data["name"]), data), Sizes(8, 8, 50))
    randomise(encoder, 0.4)
    return encoder.eval()


def every_kind(function: Any) -> Any:
    return pytest.mark.parametrize("kind", KINDS)(function)


@pytest.mark.parametrize("side", VALID)
@every_kind
def test_d79_padding_on_either_side_changes_no_real_position(kind: str, side: str) -> None:
    encoder, layout = encoder_of(kind), Layout.of(VALID[side])
    states = torch.randn(4, 7, 8)
    noise = torch.where(layout.valid[..., None], states, 1e3).requires_grad_()
    output = encoder(noise, layout).states
    assert float(output[~layout.valid].detach().abs().max()) == 0
    (gradient,) = torch.autograd.grad((output**2).sum(), noise)
    assert float(gradient[~layout.valid].abs().max()) == 0
    for row, valid in enumerate(layout.valid):
        if valid.any():
            alone = states[row][valid][None].requires_grad_()
            expected = encoder(alone, layout_of((int(valid.sum()),))).states
            torch.testing.assert_close(output[row][valid], expected[0])
            (own,) = torch.autograd.grad((expected**2).sum(), alone)
            torch.testing.assert_close(gradient[row][valid], own[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gated_cnn"])
def test_padding_inside_of_a_row_is_skipped_too(kind: str) -> None:
    encoder, states = encoder_of(kind), torch.randn(1, 6, 8)
    valid = torch.tensor([[True, False, True, True, False, True]])
    output = encoder(states, Layout.of(valid)).states
    closed = encoder(states[valid][None], layout_of((4,))).states
    torch.testing.assert_close(output[valid], closed[0])


def influence(encoder: Encoder, layout: Layout, half: slice) -> Tensor:
    """Whether `half` of output position i of row 0 depends on input position j, as [i, j]."""
    states = torch.randn(*layout.valid.shape, 8, requires_grad=True)
    output = encoder(states, layout).states[0, :, half]
    rows = [torch.autograd.grad(row.sum(), states, retain_graph=True)[0][0] for row in output]
    return torch.stack([row.abs().sum(-1) > 0 for row in rows])


@pytest.mark.parametrize("lengths", [(6, 6), (6, 4)])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "gated_cnn"])
def test_one_direction_never_looks_ahead(kind: str, lengths: tuple[int, ...]) -> None:
    found = influence(encoder_of(kind, layers=3), layout_of(lengths), slice(None))
    # Three layers of a kernel of 3 reach back by six positions, which is the whole row.
    assert torch.equal(found, torch.ones(6, 6).tril().bool())


@pytest.mark.parametrize("lengths", [(6, 6), (6, 4)])
@pytest.mark.parametrize("kind", ["rnn separate", "lstm separate"])
def test_separate_directions_never_meet(kind: str, lengths: tuple[int, ...]) -> None:
    encoder, layout = encoder_of(kind), layout_of(lengths)
    before = torch.ones(6, 6).tril().bool()
    assert torch.equal(influence(encoder, layout, slice(0, 4)), before)
    assert torch.equal(influence(encoder, layout, slice(4, 8)), before.T)


def test_joint_directions_meet_in_the_second_layer() -> None:
    layout, before = layout_of((6, 4)), torch.ones(6, 6).tril().bool()
    assert torch.equal(influence(encoder_of("lstm joint", layers=1), layout, slice(0, 4)), before)
    assert bool(influence(encoder_of("lstm joint", layers=2), layout, slice(0, 4)).all())


def test_a_kernel_bounds_how_far_back_a_convolution_reads() -> None:
    found = influence(encoder_of("gated_cnn", layers=1), layout_of((6, 4)), slice(None))
    assert torch.equal(found, torch.ones(6, 6).tril().triu(-2).bool())


@every_kind
def test_wanted_layers_are_returned_and_change_nothing(kind: str) -> None:
    encoder, layout = encoder_of(kind), Layout.of(VALID["left"])
    states = torch.randn(4, 7, 8)
    plain = encoder(states, layout)
    assert plain.layers == plain.attentions == ()
    layers = len(encoder.blocks())
    hidden = encoder(states, layout, Want(tuple(range(layers + 1))))
    assert torch.equal(hidden.states, plain.states)
    assert len(hidden.layers) == layers + 1
    assert torch.equal(hidden.layers[0], states)
    assert torch.equal(hidden.layers[-1], plain.states)
    shallow = encoder_of(kind, layers=2)
    shallow.load_state_dict(encoder.state_dict(), strict=False)
    torch.testing.assert_close(hidden.layers[2], shallow(states, layout).states)


@every_kind
def test_packed_rows_are_refused_with_the_way_out(kind: str) -> None:
    layout = layout_of((6,), documents=torch.tensor([[0, 0, 0, 1, 1, 1]]))
    with pytest.raises(DataError, match=r"objective.isolate_documents=false"):
        encoder_of(kind)(torch.randn(1, 6, 8), layout)


@every_kind
def test_every_layer_is_dropped_out_in_training_only(kind: str) -> None:
    encoder, layout = encoder_of(kind, dropout=0.5, layers=2), layout_of((50,))
    states, want = torch.randn(1, 50, 8), Want((1, 2))
    assert torch.equal(encoder(states, layout).states, encoder(states, layout).states)
    first, last = encoder.train()(states, layout, want).layers
    shares = [float((layer == 0).float().mean()) for layer in (first, last)]
    assert all(0.4 < share < 0.6 for share in shares)


@every_kind
def test_bf16_is_near_fp32(kind: str) -> None:
    encoder, layout = encoder_of(kind, layers=2), Layout.of(VALID["right"])
    states = torch.randn(4, 7, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder(states, layout).states
    torch.testing.assert_close(output.float(), encoder(states, layout).states, rtol=0.1, atol=0.1)


@every_kind
def test_flops_are_those_of_the_products(kind: str) -> None:
    encoder = encoder_of(kind)
    matrices = sum(p.numel() for p in encoder.parameters() if p.dim() > 1)
    assert 2 * matrices < encoder.flops(7) < 3 * matrices


@pytest.mark.parametrize("side", VALID)
def test_orders_begin_with_the_text_of_each_row(side: str) -> None:
    layout = Layout.of(VALID[side])
    numbers = torch.arange(1, 29).view(4, 7) * layout.valid
    forward, backward = (pad(unpad(numbers, layout), order) for order in reading_orders(layout))
    for row, length in enumerate(LENGTHS):
        text = numbers[row][layout.valid[row]]
        assert torch.equal(forward[row, :length], text)
        assert torch.equal(backward[row, :length], text.flip(0))
        assert not forward[row, length:].any()
        assert not backward[row, length:].any()
    for order in reading_orders(layout):
        assert torch.equal(order.valid, RIGHT)
        assert torch.equal(unpad(pad(unpad(numbers, layout), order), order), unpad(numbers, layout))


def test_a_full_grid_is_not_copied_to_be_read_forward() -> None:
    layout = layout_of((5, 5))
    forward, backward = reading_orders(layout)
    assert forward is layout
    numbers = torch.arange(10).view(2, 5)
    assert torch.equal(pad(unpad(numbers, layout), backward), numbers.flip(1))
