"""Models of `transformers` become ours and come back: the same tensors, the same outputs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tencentpretrain.convert.arrival import Request, arrive
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.weights import open_weights, read_json
from tests.helpers.reference import MODELS, inputs, reference, save
from tests.helpers.saved import load_saved

transformers = pytest.importorskip("transformers")

UNREAD_ROWS = {"roberta": 2, "xlm-roberta": 2, "bart": 2}
"""Rows of the tables of positions that no token reads, and that come back as zeros."""
NOT_SILENT = "but both are present in the checkpoints with different values"
"""Version 5 of `transformers` says so about every T5 v1.1: it ties even those that are not."""


class Trip(NamedTuple):
    """A reference, and folders of it, of ours, and of what came back."""

    case: str
    model: Any
    theirs: Path
    ours: Path
    back: Path


@pytest.fixture(scope="module", params=MODELS)
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trip:
    folder = tmp_path_factory.mktemp("convert")
    theirs, ours, back = folder / "theirs", folder / "ours", folder / "back"
    model = reference(request.param)
    save(model, theirs)
    arrive(theirs, Request()).write(ours)
    depart(ours).write(back)
    return Trip(request.param, model, theirs, ours, back)


def test_every_tensor_comes_back(trip: Trip) -> None:
    before, after = open_weights(trip.theirs), open_weights(trip.back)
    assert set(after) == set(before)
    skipped = UNREAD_ROWS.get(trip.model.config.model_type, 0)
    for name in before:
        left, right = before[name], after[name]
        if "position" in name:
            left, right = left[skipped:], right[skipped:]
        assert left.dtype == right.dtype
        assert torch.equal(left, right), name


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
    cls = getattr(transformers, MODELS[trip.case][0])
    options: dict[str, Any] = {"attn_implementation": "eager", "output_loading_info": True}
    with caplog.at_level(logging.WARNING, "transformers"):
        loaded, info = cls.from_pretrained(trip.back, **options)
    assert not any(info.values()), info
    assert not [m for m in caplog.messages if NOT_SILENT not in m]
    _, arguments = inputs(load_saved(trip.ours), read_json(trip.theirs / "config.json"))
    expected, actual = trip.model(**arguments), loaded(**arguments)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(actual[key], value, rtol=0, atol=0)
