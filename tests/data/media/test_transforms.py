"""Pixels for training and evaluation: equal to torchvision's, and drawn from one generator."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, _apply_op
from transformers import CLIPImageProcessor, ViTImageProcessor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.media import augment
from tencentpretrain.data.media.augment import OPERATIONS, SIGNED, ColourConfig, apply_operation
from tencentpretrain.data.media.transforms import ImageTransform, ImageTransformConfig, draw_area
from tencentpretrain.data.order import generator
from tests.helpers.pictures import picture, prepared

IMAGE = picture(5, 37, 52)


def transform(**keys: Any) -> ImageTransform:
    return ImageTransform(decode(ImageTransformConfig, {"size": 16, **keys}))


@pytest.mark.parametrize("shape", [(37, 52), (52, 37), (1, 1), (16, 16), (5, 90)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_equals_torchvision(shape: tuple[int, int], interpolation: str) -> None:
    image, mode = picture(2, *shape), InterpolationMode[interpolation.upper()]
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    steps = [T.Resize(20, mode), T.CenterCrop(16)]
    for keys, front in (({"resize": 20}, steps), ({}, [T.Resize((16, 16), mode)])):
        reference = T.Compose(
            [T.ToImage(), *front, T.ToDtype(torch.float32, scale=True), T.Normalize(mean, std)]
        )
        found = prepared(transform(mean=mean, std=std, interpolation=interpolation, **keys), image)
        assert found.shape == (3, 16, 16)
        assert torch.allclose(found, reference(image), atol=1e-5)


@pytest.mark.parametrize(
    ("processor", "keys"),
    [
        (ViTImageProcessor(size={"height": 16, "width": 16}), {}),
        (
            ViTImageProcessor(size={"height": 16, "width": 16}, resample=0),
            {"interpolation": "nearest"},
        ),
        (
            CLIPImageProcessor(
                size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, resample=3
            ),
            {
                "resize": 16,
                "interpolation": "bicubic",
                "mean": (0.48145466, 0.4578275, 0.40821073),
                "std": (0.26862954, 0.26130258, 0.27577711),
            },
        ),
    ],
    ids=["vit", "nearest", "clip"],
)
@pytest.mark.parametrize("shape", [(37, 52), (64, 43), (43, 64), (36, 64)])
def test_evaluation_equals_the_processors_of_transformers(
    processor: Any, keys: dict[str, Any], shape: tuple[int, int]
) -> None:
    image = picture(5, *shape)  # of the last three, half of what is cut off is no whole number
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(prepared(transform(**keys), image), expected, atol=1e-5)


FULL = {
    "colour": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "rand_augment": {"layers": 2, "magnitude": 9},
}


@pytest.mark.parametrize("crop", ["center", "random", "resized"])
def test_training_is_a_function_of_the_generator(crop: str) -> None:
    made = transform(crop=crop, resize=20, **FULL)
    first, again, other = (prepared(made, IMAGE, generator(1, key)) for key in (2, 2, 3))
    assert first.shape == (3, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_without_chance_is_evaluation() -> None:
    made = transform(crop="center", flip=0.0, resize=20)
    assert torch.equal(prepared(made, IMAGE, generator(0)), prepared(made, IMAGE))
    flipped = transform(crop="center", flip=1.0, resize=20)
    assert torch.equal(prepared(flipped, IMAGE, generator(0)).flip(-1), prepared(made, IMAGE))


def test_the_global_generators_are_left_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    prepared(transform(crop="random", padding=3, **FULL), IMAGE, generator(0))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_d71_random_crops_are_taken_everywhere() -> None:
    image = np.zeros((18, 20, 3), np.uint8)
    image[...] = (np.arange(18)[:, None] * 10 + np.arange(20))[..., None] % 251
    made = transform(crop="random", resize=18, size=16, flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    # The shorter edge has its length already, so that nothing is resized.
    found = {round(float(prepared(made, image, generator(n))[0, 0, 0]) * 255) for n in range(200)}
    assert found == {10 * row + column for row in range(3) for column in range(5)}


def test_padding_moves_the_edge_into_the_picture() -> None:
    white = np.full((16, 16, 3), 255, np.uint8)
    made = transform(crop="random", padding=4, flip=0.0)
    shares = [float((made.augment(white, generator(n)) == 255).float().mean()) for n in range(50)]
    assert max(shares) > min(shares) >= 0.5


def test_areas_have_the_shares_and_shapes_that_were_asked_for() -> None:
    areas = [draw_area(60, 80, (0.2, 0.5), (0.5, 2.0), generator(n)) for n in range(300)]
    for top, left, height, width in areas:
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 80 - width
        assert 0.18 < height * width / 4800 < 0.53
        assert 0.45 < width / height < 2.2
    assert {top > 30 for top, *_ in areas} == {left > 40 for _, left, *_ in areas} == {True, False}


@pytest.mark.parametrize(("height", "width"), [(2, 400), (400, 2), (1, 1)])
def test_of_a_very_long_picture_the_middle_is_taken(height: int, width: int) -> None:
    top, left, h, w = draw_area(height, width, (0.9, 1.0), (3 / 4, 4 / 3), generator(0))
    assert 1 <= h <= height
    assert 1 <= w <= width
    assert (top, left) == ((height - h) // 2, (width - w) // 2)
    assert prepared(transform(), picture(0, height, width), generator(0)).shape == (3, 16, 16)


NAMES = {
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "colour": "Color",
    "autocontrast": "AutoContrast",
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_of_rand_augment_equal_torchvision(name: str, sign: int) -> None:
    image = torch.from_numpy(picture(1, 24, 32)).permute(2, 0, 1)
    theirs = NAMES.get(name, name.capitalize())
    magnitudes, is_signed = RandAugment()._augmentation_space(31, (24, 32))[theirs]
    assert is_signed == (name in SIGNED)
    magnitude = float(magnitudes[9]) if magnitudes.ndim else 0.0
    magnitude *= sign if is_signed else 1
    expected = _apply_op(image, theirs, magnitude, InterpolationMode.NEAREST, None)
    found = apply_operation(image, name, 9 / 30, sign if is_signed else 1)
    assert abs(found.int() - expected.int()).max() <= 1


def test_rand_augment_takes_every_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[str, int]] = set()
    monkeypatch.setattr(
        augment,
        "apply_operation",
        lambda image, name, strength, sign: seen.add((name, sign)) or image,
    )
    made = transform(rand_augment={"layers": 300})
    prepared(made, IMAGE, generator(0))
    assert seen == {(name, 1) for name in OPERATIONS} | {(name, -1) for name in SIGNED}


@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation", "hue"])
def test_each_change_of_colour_is_within_its_span(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors: list[float] = []
    name = f"adjust_{change}"
    monkeypatch.setattr(
        augment.functional(), name, lambda image, factor: factors.append(factor) or image
    )
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for number in range(100):
        augment.jitter(image, decode(ColourConfig, {change: 0.3}), generator(number))
    middle = 0 if change == "hue" else 1
    assert len(factors) == 100
    assert all(abs(factor - middle) <= 0.3 for factor in factors)
    assert min(factors) < middle - 0.1 < middle + 0.1 < max(factors)


def test_texts_need_not_wait_for_torchvision() -> None:
    code = "import sys, tencentpretrain.data.objectives; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"resize": 8}, "resize must be at least size=16"),
        ({"scale": (0.5, 0.1)}, "least number first"),
        ({"scale": (0.5, 1.5)}, "scale must be at most 1"),
        ({"padding": 2}, "padding is for crop=random"),
        ({"std": (0, 1, 1)}, "must be > 0"),
    ],
)
def test_contradictions_are_told(keys: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        transform(**keys)
