"""The autoencoder as a model of five parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.errors import DataError
from tencentpretrain.layers.codebook import Codebook
from tencentpretrain.layers.convolution import ConvolutionKeys
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.targets.reconstruct import ReconstructTarget
from tencentpretrain.types import Batch, Layout, Stream, Want

NET = {"channels": 4, "multipliers": [1, 2], "blocks": 1, "attention": [1], "groups": 2}
CODES, SIZE = 9, 3


def model_of(**keys: Any) -> Model:
    data = {
        "hidden": 6,
        "embedding": {"parts": {"image": {"name": "cells", **NET}}, "norm": "none", "dropout": 0.0},
        "encoder": {"name": "none"},
        "target": {"reconstruct": {**NET, "codes": CODES, "code_size": SIZE, **keys}},
    }
    model = build_model(decode(ModelConfig, data), 1)
    with torch.no_grad():
        target_of(model).codebook.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


def target_of(model: Model) -> ReconstructTarget:
    target = model.target["reconstruct"]
    assert isinstance(target, ReconstructTarget)
    return target


def batch_of(rows: int = 5, height: int = 8, width: int = 8, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(rows, 3, height, width, generator=draw)
    layout = Layout(torch.ones(rows, 1, dtype=torch.bool))
    return Batch({"src": Stream({"pixels": pixels}, layout)})


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_losses_are_those_of_the_paper(distance: str) -> None:
    model, batch = model_of(distance=distance, commitment=0.5, codebook=2.0), batch_of()
    target, pixels = target_of(model), batch.streams["src"].inputs["pixels"]
    output = model(batch)
    out = model.encode(batch)
    vectors = target.vectors(out, batch)
    codes = target.codes(out, batch)
    assert codes.shape == (5, 16)
    chosen = target.codebook(codes)
    made = target.make(chosen, 4, 4)
    error = F.l1_loss(made, pixels) if distance == "l1" else F.mse_loss(made, pixels)
    name = "reconstruct"
    values = {key: ratio.value for key, ratio in output.losses.items()}
    torch.testing.assert_close(values[name], error)
    for part in ("codebook", "commitment"):
        torch.testing.assert_close(values[f"{name}/{part}"], F.mse_loss(vectors, chosen))
    squared = output.metrics[f"{name}/squared_error"].value
    torch.testing.assert_close(squared, F.mse_loss(made, pixels))
    assert model.target.weights == {name: 1.0, f"{name}/codebook": 2.0, f"{name}/commitment": 0.5}
    units = model.target.units(batch)
    assert {key: ratio.count for key, ratio in output.losses.items()} == units


def test_each_loss_moves_what_it_should() -> None:
    """The codebook learns from its own loss alone; the encoder from the two others."""
    model, batch = model_of(), batch_of()
    target = target_of(model)
    reader, maker = model.embedding.get_parameter("image.net.conv_in.weight"), target.net.conv_in
    for loss, moved in {
        "reconstruct": (True, False, True),
        "reconstruct/codebook": (False, True, False),
        "reconstruct/commitment": (True, False, False),
    }.items():
        model.zero_grad(set_to_none=True)
        model(batch).losses[loss].total.backward()
        for parameter, is_moved in zip(
            (reader, target.codebook.weight, maker.weight), moved, strict=True
        ):
            gradient = parameter.grad
            assert (gradient is not None and bool(gradient.any())) == is_moved, loss


def test_images_need_not_be_square_and_keep_their_size() -> None:
    model, batch = model_of(), batch_of(2, 12, 4)
    out = model.encode(batch)
    assert out.hidden.states.shape == (2, 12, 6)
    target = target_of(model)
    assert target.make(target.vectors(out, batch), 6, 2).shape == (2, 3, 12, 4)
    assert torch.isfinite(model(batch).losses["reconstruct"].total)
    assert target.logits(out, batch).argmax(1).view(2, 12).equal(target.codes(out, batch))


def test_images_of_no_whole_number_of_cells_are_refused() -> None:
    with pytest.raises(DataError, match=r"sides that 2 divides, but have 7 x 8 pixels; change"):
        model_of()(batch_of(2, 7, 8))


def test_usage_is_counted_in_training_only() -> None:
    model, batch = model_of(), batch_of()
    book = target_of(model).codebook
    model.eval()(batch)
    assert int(book.usage.sum()) == 0
    model.train()(batch)
    assert int(book.usage.sum()) == 5 * 16
    assert isinstance(book, Codebook)
    # It is part of what is saved, so that a run in parts restarts the same codes.
    assert "target.reconstruct.codebook.usage" in model.state_dict()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"groups": 3}, "groups=3 must divide the channels of every level, such as 4"),
        ({"attention": [2]}, "attention must name levels below 2, but names 2"),
        ({"multipliers": []}, "multipliers must name at least one level"),
    ],
)
def test_nets_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(ConvolutionKeys, NET | keys)


def test_the_encoder_none_hands_on_states_and_blanks_padding() -> None:
    model = model_of()
    states = torch.randn(2, 3, 6)
    valid = torch.tensor([[True, True, True], [True, False, False]])
    hidden = model.encoder(states, Layout.of(valid), Want(layers=(0,)))
    assert torch.equal(hidden.states, states * valid[..., None])
    assert torch.equal(hidden.layers[0], states)
    assert model.encoder.flops(3) == 0


def test_codes_that_are_averages_have_no_loss_and_no_gradient() -> None:
    model, batch = model_of(decay=0.9), batch_of()
    assert set(model.target.weights) == {"reconstruct", "reconstruct/commitment"}
    output = model(batch)
    assert set(output.losses) == set(model.target.weights) == set(model.target.units(batch))
    torch.stack([ratio.total for ratio in output.losses.values()]).sum().backward()
    book = target_of(model).codebook
    assert book.weight.grad is None
    assert book.averages is not None
    assert int(book.averages.taken[:, -1].sum()) == 5 * 16
    model.eval()(batch)
    assert int(book.averages.taken[:, -1].sum()) == 5 * 16, "evaluation moves no code"


@pytest.mark.parametrize("keys", [{"decay": 1.0}, {"decay": 0.9, "codebook": 2.0}])
def test_codes_move_in_one_way(keys: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="decay"):
        model_of(**keys)
