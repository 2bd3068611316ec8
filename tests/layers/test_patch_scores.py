from __future__ import annotations

from typing import Any

import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.encoders.transformer import TransformerEncoder
from tencentpretrain.layers.patch_scores import PatchScores
from tencentpretrain.model import ModelConfig
from tencentpretrain.sizes import Patches, Sizes
from tencentpretrain.types import Layout
from tests.helpers.models import model_data, randomise

PATCHES = Patches((4, 4), 2, 3, before=1)


def encoder_of(place: str, patches: Patches | None = PATCHES, **keys: Any) -> TransformerEncoder:
    config = TransformerEncoder.Config(layers=3, heads=2, ffn=16, patch_scores=place, **keys)
    encoder = TransformerEncoder(config, Sizes(8, 8, 1, patches=patches))
    randomise(encoder)
    return encoder.eval()


def test_scores_depend_on_the_offset_alone_and_on_the_class_token() -> None:
    scores = PatchScores(PATCHES, 2)
    randomise(scores)
    grid = scores(scores.index(torch.device("cpu")))[0, 0].detach()
    assert grid.shape == (7, 7)
    patches = grid[1:, 1:].reshape(2, 3, 2, 3)
    # One to the right, from anywhere.
    assert len({float(patches[r, c, r, c + 1]) for r in range(2) for c in range(2)}) == 1
    assert len({float(patches[0, c, 1, c]) for c in range(3)}) == 1
    assert patches.unique().numel() == 3 * 5
    beside = [grid[0, 1:].unique(), grid[1:, 0].unique(), grid[0, :1]]
    assert [len(part) for part in beside] == [1, 1, 1]
    assert grid.unique().numel() == 15 + 3


def test_without_a_class_token_there_are_only_offsets() -> None:
    scores = PatchScores(Patches((4, 4), 2, 3), 2)
    assert scores.weight.shape == (15, 2)
    assert scores.index(torch.device("cpu")).shape == (6, 6)


@pytest.mark.parametrize(("place", "tables"), [("shared", 1), ("apart", 3)])
def test_one_table_serves_all_layers_or_each_has_its_own(place: str, tables: int) -> None:
    encoder, states = encoder_of(place), torch.randn(2, 7, 8)
    layout = Layout(torch.ones(2, 7, dtype=torch.bool))
    assert len(encoder.patch_scores) == tables
    encoder(states, layout).states.square().sum().backward()
    for table in encoder.patch_scores.parameters():
        assert table.grad is not None
        assert float(table.grad.abs().max()) > 0


def test_rows_without_all_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="all 7 positions of an image, but there are 5"):
        encoder_of("shared")(torch.randn(2, 5, 8), Layout(torch.ones(2, 5, dtype=torch.bool)))


def test_tables_for_another_grid_are_resized() -> None:
    scores, small = PatchScores(PATCHES, 2), PatchScores(Patches((4, 4), 2, 2, before=1), 2)
    randomise(small)
    resized = scores.resized("weight", small.weight.detach())
    assert resized is not None
    assert resized.shape == scores.weight.shape
    assert torch.equal(resized[-3:], small.weight[-3:])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert/tiny", {"encoder": {"patch_scores": "shared"}}, "encoder.patch_scores needs"),
        ("beit/tiny", {"encoder": {"alibi": True}}, "patch_scores must be null beside"),
        ("mae/tiny", {"objective": {"patch_size": 8}}, "objective.patch_size must be .*16 x 16"),
        (
            "vit/tiny",
            {"objective": {"transform": {"size": 64}}},
            "objective.transform.size must be the image_size 224 x 224",
        ),
        ("bert/tiny", {"target": {"linear_pixels": {}}, "objective": None}, "linear_pixels needs"),
    ],
)
def test_models_that_do_not_fit_their_patches_are_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(ModelConfig, model_data(name, changes))
