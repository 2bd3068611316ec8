"""Vectors of images, and those that two towers compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.data.media.examples import image_stream
from tencentpretrain.data.media.images import decode_image
from tencentpretrain.data.media.transforms import ImageTransform
from tencentpretrain.model import Model, build_model
from tencentpretrain.targets.classify import pool
from tencentpretrain.types import Want
from tests.helpers.models import model_config, randomise
from tests.helpers.pictures import class_folders, prepared
from tests.helpers.saved_models import call, save_model
from tests.tasks import toy
from tests.tasks.test_image_text_retrieve import OBJECTIVE, SMALL


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model, ImageTransform]:
    """A run of two towers, its model, and images and texts beside it."""
    folder = tmp_path_factory.mktemp("clip")
    config = model_config("clip/tiny", SMALL["clip/tiny"], {"objective": OBJECTIVE})
    tokenizer = toy.tokenizer(folder)
    model = build_model(config, tokenizer.vocab_size)
    torch.manual_seed(0)
    randomise(model)
    save_model(folder / "run", model, config.to_dict(), tokenizer)
    class_folders(folder / "images", count=3)
    toy.write(folder / "in.txt", ["good film", "the house by night", ""])
    objective: Any = config.objective
    return folder, model.eval(), ImageTransform(objective.transform)


def extract(
    capsys: pytest.CaptureFixture[str], folder: Path, output: Path, **keys: Any
) -> np.ndarray[Any, Any]:
    given = {"checkpoint": folder / "run", "output": output, "batch_size": 4, **keys}
    assert call(capsys, "extract", **given)[0] == 0
    return np.load(output, allow_pickle=False)


def pixels(folder: Path, transform: ImageTransform) -> torch.Tensor:
    files = sorted((folder / "images").rglob("*.png"))
    return torch.stack([prepared(transform, decode_image(file.read_bytes())) for file in files])


@pytest.mark.parametrize(("pooling", "layer"), [("first", -1), ("mean", 0)])
def test_vectors_are_pooled_states_of_the_images_tower(
    clip: tuple[Path, Model, ImageTransform],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pooling: Any,
    layer: int,
) -> None:
    folder, model, transform = clip
    keys = {"what": "images", "input": folder / "images", "pooling": pooling, "layer": layer}
    found = extract(capsys, folder, tmp_path / "out.npy", names=tmp_path / "names.txt", **keys)
    stream = image_stream(pixels(folder, transform))
    hidden = model.read_stream("image", stream, Want((0,)))
    if layer == 0:
        hidden.states = hidden.layers[0]
    expected = pool(hidden, pooling).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    names = (tmp_path / "names.txt").read_text().split()
    assert names == [f"{label}/{number:03}.png" for label in ("blue", "red") for number in range(3)]


def test_compared_vectors_are_those_of_the_target(
    clip: tuple[Path, Model, ImageTransform], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model, transform = clip
    target: Any = model.target["contrast"]
    keys = {"what": "images", "input": folder / "images", "compared": "true"}
    found = extract(capsys, folder, tmp_path / "images.npy", **keys)
    hidden = model.read_stream("image", image_stream(pixels(folder, transform)))
    expected = target.vector(hidden, "image").detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    texts = extract(capsys, folder, tmp_path / "texts.npy", input=folder / "in.txt",
                    compared="true")  # fmt: skip
    assert texts.shape == (3, expected.shape[1])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"what": "images"}, "input is required for what=images"),
        ({"names": "n.txt", "input": "in.txt"}, "names are for what=images"),
        ({"what": "images", "input": "images", "length": 9}, "length is for what=texts"),
    ],
)
def test_keys_of_other_contents_are_refused(
    clip: tuple[Path, Model, ImageTransform],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, Any],
    message: str,
) -> None:
    given = {"checkpoint": clip[0] / "run", "output": tmp_path / "out.npy", **keys}
    code, _, errors = call(capsys, "extract", **given)
    assert code == 2
    assert message in errors[0]


def test_a_model_of_texts_alone_is_refused(
    clip: tuple[Path, Model, ImageTransform], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.save_run(tmp_path / "run", toy.MODEL)
    given = {"checkpoint": tmp_path / "run", "what": "images", "input": clip[0] / "images"}
    code, _, errors = call(capsys, "extract", output=tmp_path / "out.npy", **given)
    assert code == 2
    assert "reads no images alone" in errors[0]
    code, _, errors = call(
        capsys, "extract", output=tmp_path / "out.npy", checkpoint=tmp_path / "run",
        input=clip[0] / "in.txt", compared="true",
    )  # fmt: skip
    assert code == 2
    assert "has not learned to match two streams" in errors[0]
