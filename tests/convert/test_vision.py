"""Models of images become ours and come back, and prepare images as `transformers` does."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tencentpretrain.cli import main
from tencentpretrain.convert.arrival import Request, arrive
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.families import FAMILIES
from tencentpretrain.convert.image_preparation import Usual, image_preparation
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.weights import open_weights, read_json
from tencentpretrain.data.media.transforms import ImageTransform, ImageTransformConfig
from tencentpretrain.errors import CheckpointError
from tests.helpers.pictures import class_folders, prepared
from tests.helpers.saved import load_saved
from tests.helpers.vision import CASES, reference, vision_inputs

transformers = pytest.importorskip("transformers")


class Trip(NamedTuple):
    """A reference, and folders of it, of ours, and of what came back."""

    case: str
    model: Any
    theirs: Path
    ours: Path
    back: Path


@pytest.fixture(scope="module", params=CASES)
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trip:
    folder = tmp_path_factory.mktemp("convert")
    theirs, ours, back = folder / "theirs", folder / "ours", folder / "back"
    model = reference(request.param)
    model.save_pretrained(theirs)
    arrive(theirs, Request()).write(ours)
    depart(ours).write(back)
    return Trip(request.param, model, theirs, ours, back)


def test_every_tensor_comes_back(trip: Trip) -> None:
    before, after = open_weights(trip.theirs), open_weights(trip.back)
    # As published; version 5 of the library writes another name.
    published = {name: name.replace("decoder_encoder.layer.", "decoder_layers.") for name in before}
    assert set(after) == set(published.values())
    for name in before:
        exact = "pos" not in name or trip.case[:3] != "mae"
        difference = (before[name] - after[published[name]]).abs().max()
        assert float(difference) <= (0 if exact else 1e-6), name


def test_config_comes_back(trip: Trip) -> None:
    before, after = (read_json(folder / "config.json") for folder in (trip.theirs, trip.back))
    left_out = {"transformers_version", "dtype", "torch_dtype"}
    changed = {
        key: (value, after.get(key))
        for key, value in before.items()
        if key not in left_out and after.get(key) != value
    }
    assert not changed


def test_transformers_loads_it_silently_and_computes_the_same(
    trip: Trip, caplog: pytest.LogCaptureFixture
) -> None:
    transformers.logging.enable_propagation()
    transformers.logging.set_verbosity_warning()
    cls = getattr(transformers, CASES[trip.case][0])
    options: dict[str, Any] = {"attn_implementation": "eager", "output_loading_info": True}
    with caplog.at_level(logging.WARNING, "transformers"):
        loaded, info = cls.from_pretrained(trip.back, **options)
    assert not any(info.values()), info
    assert not caplog.messages
    _, arguments = vision_inputs(load_saved(trip.ours), read_json(trip.theirs / "config.json"))
    expected, actual = trip.model(**arguments), loaded(**arguments)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(actual[key], value, rtol=1e-5, atol=1e-5)


def test_d39_a_model_of_ours_has_a_bias_for_patches_and_the_right_names(tmp_path: Path) -> None:
    reference("vit").save_pretrained(tmp_path / "theirs")
    arrival = arrive(tmp_path / "theirs", Request())
    assert "embedding.patch.bias" in arrival.incoming.tensors
    assert not arrival.report.aside
    assert not any("tokenizer" in line for line in arrival.report.lines())


def test_other_activations_of_a_pooler_that_is_kept_aside_are_no_hindrance(tmp_path: Path) -> None:
    cls, config, keys = CASES["vit encoder"]
    model = getattr(transformers, cls)(getattr(transformers, config)(**keys, pooler_act="relu"))
    model.save_pretrained(tmp_path / "theirs")
    arrival = arrive(tmp_path / "theirs", Request())
    assert "pooler_act" not in arrival.report.unread
    arrival.write(tmp_path / "ours")
    depart(tmp_path / "ours").write(tmp_path / "back")
    assert read_json(tmp_path / "back" / "config.json")["pooler_act"] == "relu"


def test_positions_of_mae_that_are_no_waves_are_refused(tmp_path: Path) -> None:
    model = reference("mae")
    with torch.no_grad():
        model.vit.embeddings.position_embeddings[0, 3] += 0.1
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"must hold the fixed waves of MAE"):
        arrive(tmp_path, Request())


@pytest.mark.parametrize(
    ("processor", "keys"),
    [
        ("ViTImageProcessor", {"size": {"height": 24, "width": 24}}),
        ("ViTImageProcessor", {"size": {"height": 24, "width": 24}, "resample": 3}),
        ("ViTImageProcessor", {"size": {"height": 24, "width": 24}, "do_normalize": False}),
        (
            "BeitImageProcessor",
            {
                "size": {"shortest_edge": 30},
                "do_center_crop": True,
                "crop_size": {"height": 24, "width": 24},
                "image_mean": [0.4, 0.5, 0.6],
                "image_std": [0.2, 0.3, 0.4],
            },
        ),
    ],
)
def test_images_become_the_same_pixels(processor: str, keys: dict[str, Any]) -> None:
    theirs = getattr(transformers, processor)(**keys)
    content = json.loads(theirs.to_json_string())
    preparation = image_preparation(Usual(processor))
    told = preparation.to_ours(Settings(content))["transform"]
    transform = ImageTransform(ImageTransformConfig(**told))
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    expected = theirs(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(prepared(transform, image), expected, rtol=1e-5, atol=1e-5)
    written = preparation.to_theirs({"transform": told})
    again = getattr(transformers, processor)(**written)
    assert torch.equal(again(image, return_tensors="pt")["pixel_values"][0], expected)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"resample": 5}, "resample"),
        ({"size": {"height": 24, "width": 32}}, "no square"),
        ({"size": 32, "do_center_crop": True, "crop_size": 24}, "no square"),
    ],
)
def test_preparations_that_are_none_here_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        image_preparation(Usual("ViTImageProcessor")).to_ours(Settings(keys))


@pytest.mark.parametrize(
    ("name", "family"), [("vit", "vit"), ("beit", "beit"), ("mae", "mae"), ("mae encoder", "mae")]
)
def test_preparation_lies_beside_the_model_on_both_sides(
    name: str, family: str, tmp_path: Path
) -> None:
    theirs, ours, back = (tmp_path / part for part in ("theirs", "ours", "back"))
    reference(name).save_pretrained(theirs)
    processor = transformers.ViTImageProcessor(
        size={"height": 24, "width": 24}, image_mean=[0.1, 0.2, 0.3], resample=3
    )
    processor.save_pretrained(theirs)
    arrive(theirs, Request()).write(ours)
    departure = depart(ours)
    assert departure.outgoing.family is FAMILIES[family]
    departure.write(back)
    written = read_json(back / "preprocessor_config.json")
    assert written["image_mean"] == [0.1, 0.2, 0.3]
    assert written["resample"] == 3
    assert written["size"] == {"height": 24, "width": 24}


def test_a_converted_classifier_predicts_and_goes_back_with_its_preparation(
    tmp_path: Path,
) -> None:
    theirs, ours, back = (tmp_path / part for part in ("theirs", "ours", "back"))
    model = reference("vit")
    model.config.id2label = {number: f"kind{number}" for number in range(5)}
    model.save_pretrained(theirs)
    processor = transformers.ViTImageProcessor(size={"height": 24, "width": 24}, resample=3)
    processor.save_pretrained(theirs)
    arrive(theirs, Request()).write(ours)
    pictures = class_folders(tmp_path / "pictures", count=2, size=30)
    output = tmp_path / "answers.tsv"
    words = [f"checkpoint={ours}", f"data.test={pictures}", f"output={output}"]
    assert main("predict", [*words, "device=cpu"]) == 0
    rows = [line.split("\t") for line in output.read_text().splitlines()]
    images = [np.array(Image.open(pictures / row[0])) for row in rows[1:]]
    logits = model(**processor(images, return_tensors="pt")).logits
    names = [f"kind{number}" for number in logits.argmax(1).tolist()]
    assert [row[rows[0].index("label")] for row in rows[1:]] == names
    depart(ours).write(back)
    assert read_json(back / "preprocessor_config.json")["resample"] == 3
    assert read_json(back / "config.json")["id2label"]["3"] == "kind3"


def test_scores_of_a_grid_that_is_not_square_are_refused(tmp_path: Path) -> None:
    """`transformers` reads such tables as if rows were columns."""
    keys = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    config = transformers.BeitConfig(
        **keys, image_size=(16, 24), intermediate_size=32, use_relative_position_bias=True
    )
    transformers.BeitModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="scores of 2 x 3 patches cannot be converted"):
        arrive(tmp_path, Request())
