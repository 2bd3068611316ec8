from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.config import decode
from tencentpretrain.embeddings.patch import cut
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.targets.pixels import PixelTarget
from tencentpretrain.types import Batch, Labels, Layout, Stream
from tests.helpers.models import TINY, model_config, randomise, total_loss

HIDDEN = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DECODER = {"hidden": 12, "layers": 1, "heads": 2, "ffn": 16}


def model_of(target: str, **keys: Any) -> Model:
    patch = {"image_size": 8, "patch_size": 4, "mask_token": target == "linear_pixels"}
    own = {"decoder": DECODER} if target == "masked_pixels" else {}
    data = model_config("mae/tiny").to_dict()
    data |= {"hidden": 16, "target": {target: own | keys}, "objective": None}
    data["encoder"] |= TINY["encoder"]
    data["embedding"]["parts"]["patch"] |= patch
    model = build_model(decode(ModelConfig, data), 1)
    randomise(model)
    return model.eval()


def batch_of(target: str, hidden: Tensor = HIDDEN) -> Batch:
    inputs = {"pixels": PIXELS, "masked": hidden}
    if target == "masked_pixels":
        kept = (~hidden).nonzero()[:, 1].view(len(hidden), -1)
        inputs = {"pixels": PIXELS, "kept": kept}
    index = hidden.flatten().nonzero().squeeze(1)
    layout = Layout(torch.ones(len(hidden), 1, dtype=torch.bool))
    return Batch({"src": Stream(inputs, layout)}, {target: Labels(index, index)})


@pytest.mark.parametrize("target", ["masked_pixels", "linear_pixels"])
def test_the_loss_of_a_patch_is_the_mean_over_its_pixels(target: str) -> None:
    model, batch = model_of(target, normalise=False), batch_of(target)
    part = model.target[target]
    predicted = part.logits(model.encode(batch), batch)
    assert predicted.shape == (4, 48)
    wanted = cut(PIXELS, part.patches)[HIDDEN]
    error = predicted - wanted
    by_value = error.square() if target == "masked_pixels" else error.abs()
    ratio = model(batch).losses[target]
    assert int(ratio.count) == 4
    assert int(part.units(batch)) == 4
    torch.testing.assert_close(ratio.total, by_value.mean(1).sum())


def test_targets_may_be_normalised_patch_by_patch() -> None:
    plain, batch = model_of("masked_pixels", normalise=False), batch_of("masked_pixels")
    normed = model_of("masked_pixels", normalise=True)
    normed.load_state_dict(plain.state_dict())
    predicted = plain.target["masked_pixels"].logits(plain.encode(batch), batch)
    wanted = cut(PIXELS, normed.target["masked_pixels"].patches)[HIDDEN]
    wanted = (wanted - wanted.mean(1, keepdim=True)) / (wanted.var(1, keepdim=True) + 1e-6).sqrt()
    expected = (predicted - wanted).square().mean(1).sum() / 4
    torch.testing.assert_close(total_loss(normed(batch)), expected)


@pytest.mark.parametrize("target", ["masked_pixels", "linear_pixels"])
def test_predictions_of_a_patch_are_those_among_all(target: str) -> None:
    model, batch = model_of(target), batch_of(target)
    part, out = model.target[target], model.encode(batch)
    some = part.logits(out, batch)
    everything = part.logits(out, Batch(batch.streams))
    torch.testing.assert_close(everything[HIDDEN.flatten()], some)


def test_what_is_hidden_is_not_seen() -> None:
    model, batch = model_of("masked_pixels"), batch_of("masked_pixels")
    before = model.target["masked_pixels"].logits(model.encode(batch), batch)
    other = PIXELS.clone()
    other[0, :, :4, 4:], other[0, :, 4:, :4] = 7.0, -3.0
    batch.streams["src"].inputs["pixels"] = other
    after = model.target["masked_pixels"].logits(model.encode(batch), batch)
    assert torch.equal(before, after)


def test_the_order_of_kept_patches_does_not_matter() -> None:
    model, batch = model_of("masked_pixels"), batch_of("masked_pixels")
    before = model.target["masked_pixels"].logits(model.encode(batch), batch)
    stream = batch.streams["src"]
    stream.inputs["kept"] = stream.inputs["kept"].flip(1)
    after = model.target["masked_pixels"].logits(model.encode(batch), batch)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["masked_pixels", "linear_pixels"])
def test_everything_learns(target: str) -> None:
    model = model_of(target)
    total_loss(model(batch_of(target))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0 or name.endswith("key.bias"), name
    assert isinstance(model.target[target], PixelTarget)
