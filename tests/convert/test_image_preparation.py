"""What lies beside models of images says how pixels are made, in old files and in none, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.convert.arrival import Arrival, Request, arrive
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.weights import read_json
from tencentpretrain.data.media.transforms import ImageTransform, ImageTransformConfig
from tencentpretrain.tasks.pixels import choose_transform
from tencentpretrain.tools.image_vectors import trained_transform
from tencentpretrain.tools.saved_model import read_model
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tests.helpers.pictures import prepared
from tests.parity.test_image_text import CLIP, IMAGE

transformers = pytest.importorskip("transformers")

OPENAI: dict[str, Any] = {
    "crop_size": IMAGE,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": IMAGE,
}
"""The file beside CLIP's published models, for smaller images."""
FILE = "preprocessor_config.json"
VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 24,
    "patch_size": 8,
}
SQUARE: dict[str, Any] = {
    "size": {"height": 24, "width": 24},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 3,
}


def saved(folder: Path, name: str, keys: dict[str, Any], content: Any = None) -> Path:
    """A folder with a model of `transformers`, and maybe a file about its images."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    cls(cls.config_class(**keys)).save_pretrained(folder)
    if content is not None:
        (folder / FILE).write_text(json.dumps(content))
    return folder


def transform_of(arrival: Arrival) -> ImageTransform:
    told = getattr(arrival.incoming.model.objective, "transform", None)
    assert isinstance(told, ImageTransformConfig)
    return ImageTransform(told)


def test_a_number_in_files_of_clip_is_the_shorter_edge(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs", "CLIPModel", CLIP, OPENAI)
    processor = transformers.AutoImageProcessor.from_pretrained(theirs)
    arrival = arrive(theirs, Request())
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    found = prepared(transform_of(arrival), image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    arrival.write(tmp_path / "ours")
    depart(tmp_path / "ours").write(tmp_path / "back")
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back")
    assert torch.equal(again(image, return_tensors="pt")["pixel_values"][0], expected)


def test_clip_without_a_file_has_the_usual_preparation_of_its_class(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "CLIPModel", CLIP)
    edge = {"height": IMAGE, "width": IMAGE}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size=edge)
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    found = prepared(transform_of(arrive(theirs, Request())), image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("ViTModel", VIT),
        ("ViTForImageClassification", VIT | {"problem_type": "multi_label_classification"}),
        ("ViTForImageClassification", VIT | {"patch_size": (8, 4)}),
        ("BeitModel", VIT),
        ("ViltModel", VIT | {"vocab_size": 40}),
        ("ViltForImageAndTextRetrieval", VIT | {"vocab_size": 40}),
    ],
)
def test_models_without_a_trained_target_keep_their_preparation(
    name: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    is_vilt = name.startswith("Vilt")
    content = SQUARE | ({"size": {"shortest_edge": 24}} if is_vilt else {})
    arrival = arrive(saved(tmp_path / "theirs", name, keys, content), Request())
    model = arrival.incoming.model
    chosen = choose_transform(None, None, model, model.embedding.patches)
    found = (chosen.size, chosen.resize, chosen.mean, chosen.std, chosen.interpolation)
    assert found == (24, None, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    arrival.write(tmp_path / "ours")
    depart(tmp_path / "ours").write(tmp_path / "back")
    written = read_json(tmp_path / "back" / FILE)
    assert {key: written[key] for key in content} == content


def test_sizes_and_means_may_be_pairs_and_numbers(tmp_path: Path) -> None:
    content = SQUARE | {"size": [24, 24], "image_mean": 0.25, "image_std": 0.5}
    theirs = saved(tmp_path / "theirs", "ViTModel", VIT, content)
    objective: Any = arrive(theirs, Request()).incoming.model.objective
    found = objective.transform
    assert (found.size, found.mean, found.std) == (24, (0.25,) * 3, (0.5,) * 3)


def test_vectors_of_a_bare_model_are_of_its_own_pixels(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs", "ViTModel", VIT, SQUARE)
    arrive(theirs, Request()).write(tmp_path / "ours")
    transform = trained_transform(
        read_model(open_checkpoint(tmp_path / "ours"), torch.device("cpu"))
    )
    assert transform.config.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 32, "crop_size": 24, "do_center_crop": True}, "no square"),
        ({"size": {"shortest_edge": 20}, "crop_size": 24, "do_center_crop": True}, "no square"),
        ({"size": {"height": 48, "width": 48}}, "images are 48, but the model reads 24"),
    ],
)
def test_preparations_that_are_none_here_become_remarks(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    theirs = saved(tmp_path, "ViTForImageClassification", VIT, SQUARE | changes)
    arrival = arrive(theirs, Request())
    assert any(message in line for line in arrival.report.lines())
    # What can be said is kept, and the rest can be given.
    kept = transform_of(arrival).config
    assert (kept.size, kept.resize, kept.mean) == (24, None, (0.1, 0.2, 0.3))
    given = Request(overrides={"objective": {"transform": {"resize": 30}}})
    assert transform_of(arrive(theirs, given)).config.resize == 30


def test_a_preparation_without_an_objective_is_told(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "ViTModel", VIT | {"image_size": (16, 24)}, SQUARE)
    arrival = arrive(theirs, Request())
    assert arrival.incoming.model.objective is None
    assert any("preparation of inputs is not kept" in line for line in arrival.report.lines())
