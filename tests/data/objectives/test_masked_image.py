from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.media.images import decode_image
from tencentpretrain.data.objectives import OBJECTIVES
from tencentpretrain.errors import DataError
from tests.helpers.images import FakeImages
from tests.helpers.pictures import encoded
from tests.helpers.shards import FakeTokenizer, random_shards

TRANSFORM = {"size": 16, "crop": "center", "flip": 0.0}
KEYS: dict[str, dict[str, Any]] = {
    "mae": {"transform": TRANSFORM, "patch_size": 4},
    "simmim": {"transform": TRANSFORM, "patch_size": 4, "mask_size": 8, "mask_rate": 0.5},
}
both = pytest.mark.parametrize("name", KEYS)


def images(count: int = 6) -> FakeImages:
    draw = np.random.default_rng(0)
    pictures = [encoded(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]
    return FakeImages([[1]] * count, pictures)


def objective(name: str, shards: Any = None, seed: int = 3, **keys: Any) -> Any:
    config = decode(OBJECTIVES.config_class(name), {"name": name, **KEYS[name], **keys})
    return OBJECTIVES.build(config, shards or images(), FakeTokenizer(40), seed)


@both
def test_an_example_is_a_function_of_its_number(name: str) -> None:
    one, other = objective(name), objective(name)
    other.make(0, 1)
    first, again = one.make(2, 4), other.make(2, 4)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    hidden = {one.make(epoch, 4)["hidden"].tobytes() for epoch in range(8)}
    assert len(hidden) > 4
    assert not np.array_equal(objective(name, seed=4).make(2, 4)["hidden"], first["hidden"])


@both
def test_equally_many_patches_are_hidden_in_every_image(name: str) -> None:
    made = objective(name)
    counts = {int(made.make(epoch, i)["hidden"].sum()) for epoch in range(3) for i in range(6)}
    assert counts == {12 if name == "mae" else 8}


def test_every_patch_is_hidden_equally_often() -> None:
    made = objective("mae")
    share = np.mean([made.make(epoch, i)["hidden"] for epoch in range(100) for i in range(6)], 0)
    assert np.allclose(share, 0.75, atol=0.08)


def test_the_batch_of_mae_holds_the_numbers_of_what_is_seen() -> None:
    made = objective("mae")
    examples = [made.make(0, index) for index in range(3)]
    batch = made.collate(examples)
    stream, labels = batch.streams["src"], batch.labels["masked_pixels"]
    assert stream.inputs["pixels"].shape == (3, 3, 16, 16)
    assert stream.inputs["pixels"].dtype == torch.float32
    hidden = torch.from_numpy(np.stack([example["hidden"] for example in examples]))
    for row, kept in enumerate(stream.inputs["kept"]):
        assert kept.tolist() == (~hidden[row]).nonzero().flatten().tolist()
    assert labels.index is not None
    assert labels.index.tolist() == hidden.flatten().nonzero().flatten().tolist()
    assert stream.layout.valid.shape == (3, 1)
    assert batch.tokens == 3


def test_the_batch_of_simmim_hides_whole_squares() -> None:
    made = objective("simmim")
    batch = made.collate([made.make(0, index) for index in range(3)])
    masked = batch.streams["src"].inputs["masked"].view(3, 2, 2, 2, 2)
    squares = masked.permute(0, 1, 3, 2, 4).flatten(3)
    assert bool((squares == squares[..., :1]).all())
    index = batch.labels["linear_pixels"].index
    assert index is not None
    assert torch.equal(index, masked.flatten().nonzero().squeeze(1))


@both
def test_pixels_are_those_of_the_image_where_nothing_is_drawn(name: str) -> None:
    shards = images()
    made = objective(name, shards)
    pixels = made.make(0, 2)["pixels"].transpose(1, 2, 0)
    assert np.array_equal(pixels, decode_image(shards.media(2)))


def test_evaluation_changes_nothing_of_the_images() -> None:
    made = objective("mae", transform={"size": 16})
    made.is_training = False
    plain = objective("mae")
    assert np.array_equal(made.make(0, 2)["pixels"], plain.make(0, 2)["pixels"])


@both
def test_texts_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="reads images, but the data has none"):
        objective(name, random_shards(3))


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("mae", {"patch_size": 5}, "patch_size must divide transform.size=16"),
        ("mae", {"mask_rate": 0.99}, "would hide all or none of 16"),
        ("mae", {"mask_rate": 0.0}, "would hide all or none of 16"),
        ("simmim", {"mask_size": 6}, "mask_size must divide .* but is 6"),
        ("simmim", {"mask_size": 2}, "be divisible by patch_size=4, but is 2"),
        ("simmim", {"mask_size": 16}, "would hide all or none of 1"),
    ],
)
def test_masks_that_do_not_fit_are_refused(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective(name, **keys)
