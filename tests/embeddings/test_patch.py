from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.embeddings.base import Embedding, EmbeddingConfig
from tencentpretrain.embeddings.patch import PatchWaves, cut
from tencentpretrain.errors import DataError
from tencentpretrain.layers.patch_scores import resize_rows
from tencentpretrain.sizes import Patches, Sizes
from tencentpretrain.types import Layout, Stream
from tests.helpers.models import randomise

WIDTH = 16
KEYS: dict[str, Any] = {"image_size": [8, 12], "patch_size": 4}


def embedding_of(position: str | None = "patch_position", **keys: Any) -> Embedding:
    parts: dict[str, Any] = {"patch": KEYS | keys}
    parts |= {} if position is None else {position: {}}
    data = {"parts": parts, "norm": "none", "dropout": 0.0}
    embedding = Embedding(decode(EmbeddingConfig, data), Sizes(WIDTH, WIDTH, 1))
    randomise(embedding)
    for module in embedding.modules():
        if isinstance(module, PatchWaves):
            module.init_weights(0.02)
    return embedding


def stream_of(pixels: Tensor, **inputs: Tensor) -> Stream:
    one = Layout(torch.ones(len(pixels), 1, dtype=torch.bool))
    return Stream({"pixels": pixels, **inputs}, one)


PIXELS = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
def test_d39_patches_are_those_of_a_convolution_with_a_bias_by_choice(bias: bool) -> None:
    embedding = embedding_of(None, bias=bias, class_token=False)
    patch = embedding.get_submodule("patch")
    assert (patch.bias is not None) == bias
    expected = F.conv2d(PIXELS, patch.weight, patch.bias, stride=4).flatten(2).transpose(1, 2)
    hidden = embedding(stream_of(PIXELS))
    torch.testing.assert_close(hidden.states, expected, rtol=1e-5, atol=1e-5)
    assert hidden.layout.valid.shape == (2, 6)


@pytest.mark.parametrize(
    ("image", "patch"), [(8, 4), ([6, 10], 2), ([8, 12], [4, 6]), ([4, 12], [2, 3])]
)
def test_images_and_patches_of_any_shape(image: Any, patch: Any) -> None:
    embedding = embedding_of(image_size=image, patch_size=patch, channels=2)
    height, width = (image, image) if isinstance(image, int) else image
    pixels = torch.randn(2, 2, height, width)
    part = embedding.get_submodule("patch")
    stride = (patch, patch) if isinstance(patch, int) else tuple(patch)
    expected = F.conv2d(pixels, part.weight, part.bias, stride=stride).flatten(2).transpose(1, 2)
    states = embedding(stream_of(pixels)).states
    table = embedding.get_parameter("patch_position.weight")
    torch.testing.assert_close(states[:, 1:] - table[1:], expected, rtol=1e-4, atol=1e-5)


def test_a_class_token_comes_first_and_counts_as_a_position() -> None:
    embedding = embedding_of()
    hidden = embedding(stream_of(PIXELS))
    token = embedding.get_parameter("patch.class_token")
    table = embedding.get_parameter("patch_position.weight")
    assert hidden.states.shape == (2, 7, WIDTH)
    assert hidden.layout.count == 14
    assert torch.equal(hidden.states[:, 0], (token + table[0]).expand(2, -1))


@pytest.mark.parametrize("position", ["patch_position", "patch_waves"])
@pytest.mark.parametrize("class_token", [True, False])
def test_kept_patches_have_the_states_they_have_among_all(position: str, class_token: bool) -> None:
    embedding = embedding_of(position, class_token=class_token)
    kept = torch.tensor([[0, 2, 5], [4, 1, 3]])
    hidden = embedding(stream_of(PIXELS, kept=kept))
    everything = embedding(stream_of(PIXELS)).states
    before = int(class_token)
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(hidden.states[:, before:], everything[rows, kept + before])
    torch.testing.assert_close(hidden.states[:, :before], everything[:, :before])
    assert hidden.layout.valid.shape == (2, 3 + before)


def test_a_learned_vector_stands_for_masked_patches_at_their_positions() -> None:
    embedding = embedding_of(mask_token=True)
    masked = torch.tensor([[True, False, False, True, False, False]] * 2)
    states = embedding(stream_of(PIXELS, masked=masked)).states
    plain = embedding(stream_of(PIXELS)).states
    token = embedding.get_parameter("patch.mask_token")
    table = embedding.get_parameter("patch_position.weight")
    assert torch.equal(states[:, 1:][~masked], plain[:, 1:][~masked])
    assert torch.equal(states[0, 1:][masked[0]], token + table[1:][masked[0]])


def test_d85_no_gradient_reaches_masked_pixels_and_nothing_waits() -> None:
    embedding = embedding_of(mask_token=True)
    pixels = PIXELS.clone().requires_grad_()
    masked = torch.zeros(2, 6, dtype=torch.bool)
    masked[:, 0] = True
    embedding(stream_of(pixels, masked=masked)).states.sum().backward()
    assert pixels.grad is not None
    assert bool((pixels.grad[:, :, :4, :4] == 0).all())
    assert bool((pixels.grad[:, :, :4, 4:] != 0).all())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 8, 8), "images must be 3 x 8 x 12 .* but are 3 x 8 x 8; resize them"),
        ((2, 1, 8, 12), "but are 1 x 8 x 12"),
    ],
)
def test_images_of_another_size_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        embedding_of()(stream_of(torch.zeros(shape)))


def test_masks_that_do_not_fit_are_refused() -> None:
    masked = torch.zeros(2, 6, dtype=torch.bool)
    with pytest.raises(DataError, match="mask_token=true"):
        embedding_of()(stream_of(PIXELS, masked=masked))
    with pytest.raises(DataError, match="hides some of 5 patches, but the embedding makes 6"):
        embedding_of(mask_token=True)(stream_of(PIXELS, masked=masked[:, :5]))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"patch": {"image_size": 30, "patch_size": 8}}, "8 x 8 does not divide 30 x 30"),
        ({"word": {}, "patch_position": {}}, "patch_position needs a part `patch` beside it"),
        ({"patch": {}, "position": {"length": 50}}, "at least 197, .*but is 50; or take"),
        ({"patch": {"image_size": [8, 0]}}, "image_size"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(EmbeddingConfig, {"parts": parts})


def test_waves_depend_on_the_column_and_then_on_the_row() -> None:
    waves = PatchWaves(Patches((4, 4), 3, 5, before=1), 8)
    waves.init_weights(0.02)
    grid = waves.table[1:].view(3, 5, 8)
    assert bool((waves.table[0] == 0).all())
    assert torch.equal(grid[0, :, :4], grid[2, :, :4])
    assert torch.equal(grid[:, 0, 4:], grid[:, 4, 4:])
    steps = torch.tensor([1.0, 0.01])
    expected = torch.cat([(3 * steps).sin(), (3 * steps).cos(), (2 * steps).sin()])
    torch.testing.assert_close(grid[2, 3, :6], expected)
    assert not waves.state_dict()


def test_a_table_is_resized_and_its_first_rows_are_kept() -> None:
    table = torch.randn(1 + 4, 3)
    resized = resize_rows(table, 1, (4, 4), "bicubic")
    assert resized is not None
    image = table[1:].T.view(1, 3, 2, 2)
    expected = F.interpolate(image, (4, 4), mode="bicubic")[0].flatten(1).T
    torch.testing.assert_close(resized[1:], expected)
    assert torch.equal(resized[0], table[0])
    same = resize_rows(table, 1, (2, 2), "bicubic")
    assert same is not None
    torch.testing.assert_close(same, table)


def test_a_table_of_no_grid_is_not_resized() -> None:
    assert resize_rows(torch.zeros(1 + 5, 3), 1, (4, 4), "bicubic") is None
    assert resize_rows(torch.zeros(1, 3), 1, (4, 4), "bicubic") is None
    # Neither square nor of the wanted shape, and of the wanted shape.
    assert resize_rows(torch.zeros(7, 3), 1, (4, 4), "bicubic") is None
    assert resize_rows(torch.zeros(7, 3), 1, (4, 6), "bicubic") is not None
    # 16 rows may be 4 x 4 or 8 x 2.
    assert resize_rows(torch.zeros(17, 3), 1, (16, 4), "bicubic") is None
    assert resize_rows(torch.zeros(17, 3), 1, (16, 8), "bicubic") is not None


def test_values_of_chosen_patches_are_those_among_all() -> None:
    patches = Patches((4, 4), 2, 3)
    chosen = torch.tensor([[1, 5], [3, 0]])
    values = cut(PIXELS, patches)
    expected = torch.stack([values[0, [1, 5]], values[1, [3, 0]]])
    assert torch.equal(cut(PIXELS, patches, chosen), expected)
    assert torch.equal(values[0, 4], PIXELS[0, :, 4:, 4:8].flatten())
