"""Batches of BEiT and DALL-E before and after their codes are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.annotators.image_codec import ImageCodec, Normalisation
from tencentpretrain.annotators.image_codes import ImageCodes, check_images
from tencentpretrain.config import ConfigError
from tencentpretrain.errors import CheckpointError
from tencentpretrain.sizes import Patches
from tencentpretrain.types import IGNORE, SRC, Labels
from tests.helpers.image_codes import (
    BEIT,
    CAPTIONS,
    CELL,
    CPU,
    DALLE,
    MEAN,
    SIDE,
    STD,
    TRANSFORM,
    VOCABULARY,
    annotated,
    batch_of,
    objective_of,
    setting_of,
    write_weights,
)
from tests.helpers.shards import FakeTokenizer
from tests.helpers.vqgan import CODES


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("vqgan"))


def codes_of(weights: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Codes [B, N] of images in colours normalised with `MEAN` and `STD`."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ImageCodec.open(weights, CPU).encode(pixels * std + mean)


def test_beit_learns_the_codes_of_hidden_patches(weights: Path) -> None:
    objective = objective_of("beit", weights, **BEIT)
    batch = batch_of(objective)
    masked = batch.streams[SRC].inputs["masked"]
    before = batch.labels["mlm"]
    after = annotated(objective, batch)
    codes = codes_of(weights, batch.streams[SRC].inputs["pixels"])
    labels = after.labels["mlm"]
    assert torch.equal(labels.values, codes[masked])
    # Positions are those behind a class token, of the same patches in the same order.
    grid = torch.zeros(len(codes), 1 + SIDE**2, dtype=torch.bool)
    assert labels.index is not None
    grid.view(-1)[labels.index] = True
    assert torch.equal(grid[:, 1:], masked)
    assert not grid[:, 0].any()
    # What counts units before the codes are known counts the same.
    assert before.values.shape == labels.values.shape
    assert (before.values != IGNORE).all()


def test_d74_code_0_is_learned(weights: Path) -> None:
    objective = objective_of("beit", weights, **BEIT)
    batch = batch_of(objective)
    zeros = torch.zeros(len(batch.streams[SRC].inputs["pixels"]), SIDE**2, dtype=torch.int64)
    labels = objective.with_codes(batch, zeros).labels["mlm"]
    assert len(labels.values) == int(batch.streams[SRC].inputs["masked"].sum()) > 0
    assert (labels.values == 0).all()


def test_without_a_class_token_positions_are_those_of_patches(weights: Path) -> None:
    objective = objective_of("beit", weights, **BEIT, class_token=False)
    batch = batch_of(objective)
    index = batch.labels["mlm"].index
    assert index is not None
    assert torch.equal(index, batch.streams[SRC].inputs["masked"].flatten().nonzero()[:, 0])


@pytest.mark.parametrize("supervise_text", [True, False])
def test_dalle_rows_are_captions_and_codes(weights: Path, supervise_text: bool) -> None:
    objective = objective_of("dalle", weights, **DALLE, supervise_text=supervise_text)
    batch = batch_of(objective)
    after = annotated(objective, batch)
    codes = codes_of(weights, batch.extras["images"]) + VOCABULARY
    stream, room = after.streams[SRC], DALLE["length"] + 1 - SIDE**2
    tokenizer = FakeTokenizer()
    for row, caption in enumerate(CAPTIONS):
        text = [tokenizer.cls, *caption, tokenizer.sep]
        whole = [*text, *codes[row].tolist()]
        count = len(whole) - 1
        inputs = {name: values[row] for name, values in stream.inputs.items()}
        assert inputs["ids"][:count].tolist() == whole[:-1]
        assert inputs["segments"][:count].tolist() == [0] * len(text) + [1] * (SIDE**2 - 1)
        places = [*range(len(text)), *range(room, room + SIDE**2 - 1)]
        assert inputs["positions"][:count].tolist() == places
        assert stream.layout.valid[row].tolist() == [
            n < count for n in range(stream.layout.valid.shape[1])
        ]
        told = dict(supervised(after.labels["image"], row, stream.layout.valid.shape[1]))
        assert told == {len(text) - 1 + n: code for n, code in enumerate(whole[len(text) :])}
        told = dict(supervised(after.labels["text"], row, stream.layout.valid.shape[1]))
        assert told == ({n: token for n, token in enumerate(text[1:])} if supervise_text else {})
        if not supervise_text:
            assert stream.layout.prefix is not None
            assert int(stream.layout.prefix[row]) == len(text)
    assert (stream.layout.prefix is None) == supervise_text
    # The batch before is as it was, and its placeholders stay within the vocabulary.
    assert int(batch.streams[SRC].inputs["ids"].max()) == VOCABULARY


def supervised(labels: Labels, row: int, width: int) -> list[tuple[int, int]]:
    """Positions and labels of a row."""
    assert labels.index is not None
    pairs = zip(labels.index.tolist(), labels.values.tolist(), strict=True)
    return [(index % width, value) for index, value in pairs if index // width == row]


def test_long_captions_are_cut_at_their_end(weights: Path) -> None:
    objective = objective_of("dalle", weights, cell_size=CELL, length=SIDE**2 + 3)
    assert objective.make(0, 2)["ids"].tolist() == [2, 40, 41, 3]


def test_codes_do_not_depend_on_how_pixels_are_normalised(weights: Path) -> None:
    other = TRANSFORM | {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    found = []
    for transform in (TRANSFORM, other):
        objective = objective_of("dalle", weights, **DALLE, transform=transform)
        found.append(annotated(objective, batch_of(objective)).labels["image"].values)
    assert torch.equal(*found)


def test_normalisation_is_undone() -> None:
    pixels, kind = torch.rand(2, 3, 4, 4), Normalisation(MEAN, STD)
    torch.testing.assert_close(kind.undo(kind.apply(pixels)), pixels)


@pytest.mark.parametrize(
    ("name", "keys", "setting", "error", "message"),
    [
        ("beit", {"patch_size": 4, "least_block": 1}, {}, ConfigError,
         "a code for each 2 x 2 pixels, but the objective reads 4 x 4 codes of 16 x 16 pixels"),
        ("beit", BEIT, {"outputs": {"mlm": 8192}}, ConfigError,
         f"model.vocabulary: must be {CODES}, for the {CODES} codes .* target mlm has 8192"),
        ("dalle", DALLE, {"outputs": {"image": 60}}, ConfigError,
         f"must be {VOCABULARY + CODES}, for {VOCABULARY} tokens and the {CODES} codes"),
        ("beit", BEIT | {"class_token": False}, {"patches": Patches((2, 2), 8, 8, before=1)},
         ConfigError, "model.objective.class_token: must be True, as in the patch part"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    weights: Path,
    name: str,
    keys: dict[str, Any],
    setting: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    objective = objective_of(name, weights, **keys)
    with pytest.raises(error, match=message):
        objective.companion(setting_of(objective, **setting))


def test_an_autoencoder_must_be_named(tmp_path: Path) -> None:
    objective = objective_of("beit", None, **BEIT)
    with pytest.raises(ConfigError, match=r"model.objective.codes.path: is required: the run"):
        objective.companion(setting_of(objective))
    objective = objective_of("beit", tmp_path / "nothing", **BEIT)
    with pytest.raises(CheckpointError, match="nothing"):
        objective.companion(setting_of(objective))


def test_other_images_than_those_of_training_are_refused(weights: Path) -> None:
    objective = objective_of("beit", weights, **BEIT)
    annotator = ImageCodes.of(objective, setting_of(objective))
    annotator.codec.size = 32

    with pytest.raises(CheckpointError, match="was trained on images of 32 x 32 pixels, but"):
        check_images(annotator.codec, objective)
