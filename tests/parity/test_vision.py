"""Models of images give the states, logits, losses and gradients of `transformers`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tencentpretrain.layers.patch_scores import resize_rows
from tencentpretrain.types import Want
from tests.helpers.models import total_loss
from tests.helpers.reference import LAYERS, Pair
from tests.helpers.vision import CASES, SIDE, our_gradients, vision_pair

pytest.importorskip("transformers")

LEARNING = [name for name in CASES if "encoder" not in name]


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> Pair:
    return vision_pair(request.param)


all_cases = pytest.mark.parametrize("models", CASES, indirect=True)
learning = pytest.mark.parametrize("models", LEARNING, indirect=True)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@all_cases
def test_states_of_every_layer_are_those_of_transformers(models: Pair) -> None:
    arguments = {k: v for k, v in models.arguments.items() if k != "labels"}
    theirs = models.theirs(**arguments, output_hidden_states=True)
    ours = models.ours.read(models.batch.streams["src"], Want(tuple(range(LAYERS + 1))))
    assert len(ours.layers) == len(theirs.hidden_states) == LAYERS + 1
    for mine, reference in zip(ours.layers, theirs.hidden_states, strict=True):
        close(mine, reference)
    if "last_hidden_state" in theirs:
        close(ours.states, theirs.last_hidden_state)


@learning
def test_logits_are_those_of_transformers(models: Pair) -> None:
    out = models.ours.encode(models.batch)
    (name,) = models.ours.target.names
    logits = models.ours.target[name].logits(out, models.batch)
    theirs = models.theirs(**models.arguments).logits
    if name == "mlm":
        theirs = theirs[models.arguments["bool_masked_pos"]]
    elif name == "masked_pixels":
        index = models.batch.labels[name].index
        assert index is not None
        by_pixel = theirs.flatten(0, 1)[index].unflatten(1, (64, 3))
        theirs = by_pixel.transpose(1, 2).flatten(1)
    close(logits, theirs)


@learning
def test_loss_and_gradients_are_those_of_transformers(models: Pair) -> None:
    models.ours.zero_grad()
    models.theirs.zero_grad()
    loss = total_loss(models.ours(models.batch))
    reference = models.theirs(**models.arguments).loss
    close(loss, reference)
    loss.backward()
    reference.backward()
    gradients = our_gradients(models)
    for name, parameter in models.ours.named_parameters():
        assert parameter.grad is not None, name
        close(parameter.grad, gradients[name])
        assert parameter.grad.abs().max() > 1e-4 or name.endswith("key.bias"), name


@pytest.mark.parametrize("case", ["vit", "beit encoder"])
def test_positions_for_a_larger_image_are_resized_as_by_transformers(case: str) -> None:
    pair = vision_pair(case)
    pixels = torch.randn(2, 3, 8 * SIDE + 16, 8 * SIDE + 8)
    embeddings = getattr(pair.theirs, "vit", pair.theirs).embeddings
    states = torch.zeros(2, 1 + 5 * 4, 32)
    expected = embeddings.interpolate_pos_encoding(states, *pixels.shape[2:])[0]
    table = pair.ours.get_parameter("embedding.patch_position.weight")
    actual = resize_rows(table, 1, (5, 4), "bicubic")
    assert actual is not None
    close(actual, expected)
