"""Images and their classes as examples: pure functions of seed, epoch and index."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.config import decode
from tencentpretrain.data.loader import Loader, shared_batches
from tencentpretrain.data.media.images import decode_image
from tencentpretrain.data.media.transforms import ImageTransform
from tencentpretrain.data.objectives import OBJECTIVES
from tencentpretrain.data.objectives.base import NoVocabulary, Objective
from tencentpretrain.data.objectives.image import ImageObjective
from tencentpretrain.data.order import generator
from tencentpretrain.data.shards import ShardSet
from tencentpretrain.errors import DataError
from tests.helpers.pictures import class_folders, encoded, media_shards, picture, prepared
from tests.helpers.records import record_shards

MIXED = {"mix": {"mixup": 0.8, "cutmix": 1.0}, "smoothing": 0.1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("images")
    return media_shards(folder / "s", class_folders(folder / "data", count=6, size=10))


def objective(shards: ShardSet, name: str = "image", seed: int = 3, **keys: Any) -> Objective:
    config = decode(OBJECTIVES.config_class(name), {"name": name, "transform": {"size": 8}, **keys})
    return OBJECTIVES.build(config, shards, NoVocabulary(), seed)


def test_examples_are_what_the_transform_makes(shards: ShardSet) -> None:
    made = objective(shards)
    assert isinstance(made, ImageObjective)
    batch = made.collate([made.make(2, index) for index in range(12)])
    transform = ImageTransform(made.config.transform)
    for index, pixels in enumerate(batch.streams["src"].inputs["pixels"]):
        image = decode_image(shards.media(index))
        assert torch.equal(pixels, prepared(transform, image, generator(3, 2, index)))
    assert batch.streams["src"].inputs["pixels"].dtype == torch.float32
    assert batch.labels["classify"].values.tolist() == [0] * 6 + [1] * 6
    assert batch.tokens == 12
    assert batch.streams["src"].layout.valid.shape == (12, 1)


@pytest.mark.parametrize("keys", [{}, MIXED])
def test_examples_depend_on_seed_epoch_and_index_alone(
    shards: ShardSet, keys: dict[str, Any]
) -> None:
    first, second = (objective(shards, **keys) for _ in range(2))
    for index in (0, 7):
        one, two = first.make(1, index), second.make(1, index)
        assert all(np.array_equal(one[key], two[key]) for key in one)
        for other in (first.make(2, index), objective(shards, seed=4, **keys).make(1, index)):
            assert not np.array_equal(one["pixels"], other["pixels"])


def test_evaluation_never_varies(shards: ShardSet) -> None:
    made = objective(shards, **MIXED)
    made.is_training = False
    transform = ImageTransform(made.config.transform)
    for index in range(12):
        example = made.make(index, index)
        assert example["row_label"].tolist() == [index // 6]
        batch = made.collate([example])
        expected = prepared(transform, decode_image(shards.media(index)))
        assert torch.equal(batch.streams["src"].inputs["pixels"][0], expected)


def test_mixed_images_have_the_probabilities_of_both_classes(shards: ShardSet) -> None:
    made = objective(shards, mix={"mixup": 1.0}, transform={"size": 8, "crop": "center", "flip": 0})
    seen = []
    for index in range(12):
        example = made.make(0, index)
        shares = example["row_label"][0]
        assert shares.dtype == np.float32
        assert shares.sum() == pytest.approx(1)
        # Pictures are brighter by 120 in the channel of their class.
        pixels = example["pixels"].astype(float).mean((1, 2))
        assert pixels[0] - pixels[2] == pytest.approx(120 * (shares[1] - shares[0]), abs=25)
        seen.append(shares.max())
    assert min(seen) < 0.9


def test_smoothing_spreads_a_part_over_all_classes(shards: ShardSet) -> None:
    made = objective(shards, smoothing=0.2)
    assert made.make(0, 0)["row_label"] == pytest.approx(np.array([[0.9, 0.1]]))


@pytest.mark.parametrize("workers", [0, 2])
def test_d83_batches_continue_where_they_stopped(shards: ShardSet, workers: int) -> None:
    def pixels(loader: Loader, steps: int) -> list[torch.Tensor]:
        batches = iter(loader)
        return [
            tensor
            for _ in range(steps)
            for micro in next(batches)
            for tensor in (micro.streams["src"].inputs["pixels"], micro.labels["classify"].values)
        ]

    made = objective(shards, **MIXED)
    whole = pixels(Loader(made, 5, 2, seed=1), 6)
    first = Loader(made, 5, 2, seed=1, workers=workers)
    found = pixels(first, 2)
    second = Loader(objective(shards, **MIXED), 5, 2, seed=1, workers=workers)
    second.load_state_dict({"samples": 10})
    found += pixels(second, 4)
    assert len(found) == len(whole)
    assert all(torch.equal(one, two) for one, two in zip(whole, found, strict=True))


def test_a_batch_does_not_depend_on_how_it_is_cut(shards: ShardSet) -> None:
    made = objective(shards, **MIXED)
    made_whole, made_parts = (next(iter(Loader(made, 6, size, seed=1))) for size in (6, 2))
    for read in (
        lambda batch: batch.streams["src"].inputs["pixels"],
        lambda batch: batch.labels["classify"].values,
    ):
        assert torch.equal(read(made_whole[0]), torch.cat([read(part) for part in made_parts]))


def test_evaluation_reads_each_image_once(shards: ShardSet) -> None:
    made = objective(shards)
    made.is_training = False
    batches = [shared.batch for shared in shared_batches(made, 5)]
    assert sum(batch.tokens for batch in batches) == 12


def test_paths_serve_as_well_as_bytes(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data", count=2)
    made = [
        objective(media_shards(tmp_path / store, folder, corpus_store=store)).make(1, 3)["pixels"]
        for store in ("bytes", "path")
    ]
    assert np.array_equal(*made)


def test_a_file_that_was_altered_later_is_named(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data", count=2)
    made = objective(media_shards(tmp_path / "s", folder, corpus_store="path"))
    (folder / "red" / "001.png").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"red/001.png has changed since it was pre"):
        next(iter(Loader(made, 4, 4, seed=0, workers=1)))


def test_other_data_is_refused(tmp_path: Path) -> None:
    texts = record_shards(tmp_path, "label", "a\tw1 w2\nb\tw3 w4\n")
    with pytest.raises(
        DataError, match=r"reads images, but the data has none.*corpus.format=image"
    ):
        objective(texts)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.png").write_bytes(encoded(picture(0)))
    flat = media_shards(tmp_path / "s", tmp_path / "flat")
    with pytest.raises(DataError, match="needs a class for each image, but 1 of 1 have none"):
        objective(flat)


@pytest.mark.parametrize("name", ["bert", "mlm", "lm", "t5", "bart", "pegasus", "bilm", "cls"])
def test_objectives_of_texts_refuse_images(shards: ShardSet, name: str) -> None:
    config = decode(OBJECTIVES.config_class(name), {"name": name})
    message = f"^objective `{name}` reads texts, but the data holds images or sounds without any; p"
    with pytest.raises(DataError, match=message):
        OBJECTIVES.build(config, shards, NoVocabulary(), 0)


@pytest.mark.parametrize("name", ["translate", "sft"])
def test_objectives_of_records_refuse_images(shards: ShardSet, name: str) -> None:
    config = decode(OBJECTIVES.config_class(name), {"name": name})
    with pytest.raises(DataError, match="another kind than the images without texts that were pre"):
        OBJECTIVES.build(config, shards, NoVocabulary(), 0)
