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
from tencentpretrain.data.media.transforms import ImageTransform, ImageTransformConfig
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
