"""Rows of pictures are written as they were read in training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tencentpretrain.annotators.image_codec import ImageCodec
from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.objectives.dalle import DalleObjective
from tencentpretrain.errors import CheckpointError
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.engine import writing_target
from tencentpretrain.generate.frame import caption_edges
from tencentpretrain.generate.pictures import Painter, grid_of
from tencentpretrain.generate.rows import GrowingRows, RowOptions
from tencentpretrain.model import Model, build_model
from tests.helpers.image_codes import (
    CAPTIONS,
    CPU,
    DALLE,
    SIDE,
    VOCABULARY,
    annotated,
    batch_of,
    objective_of,
    write_weights,
)
from tests.helpers.models import model_config, randomise
from tests.helpers.shards import FakeTokenizer
from tests.helpers.vqgan import CODES

TINY = {
    "hidden": 16,
    "vocabulary": VOCABULARY + CODES,
    "encoder": {"layers": 2, "heads": 2, "ffn": 32},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("vqgan"))


def model_of(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    model = build_model(model_config("dalle/tiny", TINY), VOCABULARY)
    randomise(model)
    return model.eval()


@pytest.mark.parametrize("supervise_text", [True, False])
@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("aligned", [True, False])
def test_d32_codes_are_scored_as_in_training(
    weights: Path, supervise_text: bool, is_cached: bool, aligned: bool
) -> None:
    """Captions of different lengths, with and without a prefix, one code after another."""
    keys = {"supervise_text": supervise_text, "aligned": aligned}
    objective = objective_of("dalle", weights, **DALLE, **keys)
    assert isinstance(objective, DalleObjective)
    batch, model = annotated(objective, batch_of(objective)), model_of()
    with torch.no_grad():
        told = model.target["image"].logits(model.encode(batch), batch)
    told = told.view(len(CAPTIONS), SIDE**2, -1)
    codes = batch.labels["image"].values.view(len(CAPTIONS), -1)
    options = RowOptions(
        first=VOCABULARY,
        first_position=objective.config.first_position if aligned else None,
        has_prefix=not supervise_text,
        segment=1,
        is_cached=is_cached,
    )
    prompts = [objective.row(number).tolist() for number in range(len(CAPTIONS))]
    with torch.no_grad():
        target = writing_target(model, "image")
        rows = GrowingRows(model, target, prompts, SIDE**2, options)
        scores = [rows.start()]
        for place in range(SIDE**2 - 1):
            scores.append(rows.append(codes[:, place]))
    found = torch.stack(scores, 1)
    assert (found[..., :VOCABULARY] == -torch.inf).all()
    torch.testing.assert_close(
        found[..., VOCABULARY:], told[..., VOCABULARY:], rtol=1e-4, atol=1e-4
    )


def painter_of(weights: Path, **keys: Any) -> Painter:
    objective = objective_of("dalle", weights, **DALLE | keys)
    codec = ImageCodec.open(weights, CPU)
    tokenizer: Any = FakeTokenizer(VOCABULARY)
    tokenizer.encode_batch = lambda texts: [[ord(c) % VOCABULARY for c in text] for text in texts]
    return Painter(model_of(), tokenizer, objective.config, codec)


def test_captions_are_framed_as_in_training(weights: Path) -> None:
    objective = objective_of("dalle", weights, **DALLE)
    for missing in ((), ("cls",), ("cls", "eos")):
        tokenizer: Any = FakeTokenizer(VOCABULARY, missing)
        objective.tokenizer = tokenizer
        objective._prepare()
        before, behind = caption_edges(tokenizer)
        assert isinstance(objective, DalleObjective)
        assert objective.row(0).tolist() == [*before, *CAPTIONS[0], *behind]


def test_what_is_drawn_depends_on_the_own_number_alone(weights: Path) -> None:
    painter, decoding = painter_of(weights), Decoding(temperature=1.0, seed=3)
    rows = painter.encode(["ab", "c", "ab"])
    codes = painter.codes(rows, decoding, [0, 1, 2])
    assert codes.shape == (3, SIDE**2)
    assert 0 <= int(codes.min()) <= int(codes.max()) < CODES
    alone = painter.codes(rows[1:2], decoding, [1])
    assert torch.equal(alone[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
    assert torch.equal(painter.codes(rows, decoding, [0, 1, 2]), codes)


def test_another_autoencoder_is_refused(weights: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"writes 20 codes, 4 x 4 .* has 20, each of 2 pixels"
    ):
        painter_of(weights, cell_size=4)


def test_a_grid_holds_each_picture_at_its_place() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 3)).astype(np.uint8)
    grid = np.array(Image.open(io.BytesIO(grid_of(pictures, 2))))
    assert grid.shape == (3 * 4 + 2 * 2, 2 * 6 + 2, 3)
    for number, picture in enumerate(pictures):
        top, left = number // 2 * 6, number % 2 * 8
        assert (grid[top : top + 4, left : left + 6] == picture).all()
    assert (grid[4:6] == 255).all()
    assert (grid[12:, 8:] == 255).all()


def test_objectives_have_room_for_codes_and_a_caption() -> None:
    with pytest.raises(ConfigError, match="length must be at least 66, for 64 codes and"):
        decode(
            DalleObjective.Config,
            {"name": "dalle", "length": 60, "cell_size": 2, "transform": {"size": 16}},
        )
