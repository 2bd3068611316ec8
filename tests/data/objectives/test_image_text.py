"""Captioned images as two streams, and as one with masks and images of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.config import decode
from tencentpretrain.data.media.images import decode_image
from tencentpretrain.errors import DataError
from tencentpretrain.model import ModelConfig, build_model
from tests.helpers.images import FakeImages, picture
from tests.helpers.objectives import objective as plain_objective
from tests.helpers.pictures import encoded
from tests.helpers.pictures import picture as noise
from tests.helpers.shards import FakeShards, FakeTokenizer

PLAIN = {"size": 8, "crop": "center", "flip": 0.0}
KEYS: dict[str, Any] = {"length": 8, "transform": PLAIN}
CAPTIONS = [[20, 21], [30], [40, 41, 42, 43, 44, 45, 46, 47], [20, 21]]


def shards(captions: list[list[int]] | None = None) -> FakeImages:
    given = CAPTIONS if captions is None else captions
    return FakeImages(given, [picture(number) for number in range(len(given))])


def objective(
    name: str, data: FakeShards, tokenizer: FakeTokenizer | None = None, **values: Any
) -> Any:
    return plain_objective(name, data, tokenizer or FakeTokenizer(60), **values)


def shown(pixels: np.ndarray | torch.Tensor) -> int:
    """Number of the picture that `pixels` [3, H, W] are of."""
    first = float(pixels[0, 0, 0])
    return round((first + 1) / 2 * 255) if isinstance(pixels, torch.Tensor) else int(first)


def test_captions_and_images_are_rows_of_two_streams() -> None:
    made = objective("clip", shards(), **KEYS)
    assert (made.supervises, made.streams) == (("contrast",), ("text", "image"))
    batch = made.collate([made.make(0, index) for index in range(len(made))])
    text, image = batch.streams["text"], batch.streams["image"]
    rows = [
        ids[valid].tolist()
        for ids, valid in zip(text.inputs["ids"], text.layout.valid, strict=True)
    ]
    assert rows == [[2, 20, 21, 3], [2, 30, 3], [2, *range(40, 46), 3], [2, 20, 21, 3]]
    assert image.inputs["pixels"].shape == (4, 3, 8, 8)
    assert [shown(pixels) for pixels in image.inputs["pixels"]] == [0, 1, 2, 3]
    assert image.layout.valid.shape == (4, 1)
    assert batch.labels == {}
    assert batch.tokens == 4 + 3 + 8 + 4


def test_texts_begin_and_end_as_the_vocabulary_has_it() -> None:
    tokenizer = FakeTokenizer(60, missing=("cls", "sep", "mask"))
    made = objective("clip", shards(), tokenizer, **KEYS)
    assert made.make(0, 1)["ids"].tolist() == [5, 30, 6]


def test_examples_are_functions_of_epoch_and_index() -> None:
    wild = KEYS | {"transform": {"size": 6, "crop": "random", "padding": 2}}
    one, same = (objective("clip", shards(), **wild) for _ in range(2))
    assert np.array_equal(one.make(2, 1)["pixels"], same.make(2, 1)["pixels"])
    assert not np.array_equal(one.make(2, 1)["pixels"], one.make(3, 1)["pixels"])


@pytest.mark.parametrize("name", ["clip", "vilt"])
def test_texts_without_images_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"corpus\.format=image_text"):
        objective(name, FakeShards([[[20]], [[30]]]), **KEYS)


def examples(made: Any, epochs: int = 50) -> list[tuple[int, dict[str, np.ndarray]]]:
    return [(i, made.make(epoch, i)) for epoch in range(epochs) for i in range(len(made))]


def test_images_of_others_really_differ_in_caption_and_image() -> None:
    """Documents 0 and 3 have one caption, 1 and 4 one image."""
    images = [picture(number) for number in (0, 1, 2, 3, 1)]
    data = FakeImages([[20, 21], [30], [40], [20, 21], [50]], images)
    made = objective("vilt", data, **KEYS)
    seen: set[tuple[int, int]] = set()
    for index, example in examples(made):
        picture_of = shown(example["pixels"])
        belongs = bool(example["match"][0])
        assert belongs == (picture_of == (1 if index == 4 else index))
        seen.add((index, picture_of))
    assert not seen & {(0, 3), (3, 0)}
    assert {(0, 1), (0, 2), (1, 0), (2, 3), (4, 2)} <= seen


def test_words_are_to_be_found_beside_their_own_image_only() -> None:
    made = objective("vilt", shards(), **KEYS)
    masked = {True: 0, False: 0}
    for _, example in examples(made):
        is_match = bool(example["match"][0])
        assert (len(example["labels"]) > 0) == is_match
        masked[is_match] += int((example["ids"] == 4).any())
    # Masks must not tell what belongs together.
    assert masked[True] > 40
    assert masked[False] == pytest.approx(masked[True], rel=0.5)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0.0), (0.5, 0.5), (0.9, 0.9)])
def test_as_many_images_are_of_others_as_the_rate_says(rate: float, expected: float) -> None:
    made = objective("vilt", shards(), mismatch_rate=rate, **KEYS)
    found = [1 - int(example["match"][0]) for _, example in examples(made, 100)]
    assert np.mean(found) == pytest.approx(expected, abs=0.08)


def test_labels_count_positions_in_the_grid_of_words() -> None:
    made = objective("vilt", shards(), mismatch_rate=0.0, **KEYS)
    rows = [made.make(0, index) for index in range(4)]
    batch = made.collate(rows)
    stream, labels = batch.streams["src"], batch.labels["mlm"]
    assert labels.width == stream.inputs["ids"].shape[1] == 8
    assert labels.index is not None
    restored = stream.inputs["ids"].flatten().clone()
    restored[labels.index] = labels.values
    found = restored.view(4, 8)[stream.layout.valid]
    assert found.tolist() == [t for i in range(4) for t in made.row(i).tolist()]
    assert batch.labels["match"].values.tolist() == [1, 1, 1, 1]
    assert stream.inputs["pixels"].shape == (4, 3, 8, 8)


def test_captions_that_are_all_alike_are_refused() -> None:
    with pytest.raises(DataError, match="all 3 captions are the same"):
        objective("vilt", shards([[20, 21]] * 3), **KEYS)
    assert len(objective("vilt", shards([[20, 21]] * 3), mismatch_rate=0.0, **KEYS)) == 3


def test_d73_matches_are_counted_by_rows_and_words_by_masks() -> None:
    made = objective("vilt", shards(), **KEYS)
    batch = made.collate([made.make(0, index) for index in range(4)])
    patch = {"image_size": 8, "patch_size": 4}
    text = {"parts": {"word": {}, "position": {"length": 8}}}
    image = {"parts": {"patch": patch, "patch_position": {}}}
    data = {
        "hidden": 16,
        "embedding": {"parts": {"concat": {"embeddings": {"text": text, "image": image}}}},
        "encoder": {"layers": 1, "heads": 2},
        "target": {"mlm": {}, "match": {"name": "classify", "classes": 2}},
    }
    metrics = build_model(decode(ModelConfig, data), 60)(batch).metrics
    assert int(metrics["match/accuracy"].count) == 4
    assert int(metrics["mlm/accuracy"].count) == len(batch.labels["mlm"].values)


@pytest.mark.parametrize("name", ["clip", "vilt"])
def test_evaluation_never_varies_images(name: str) -> None:
    """Whatever the epoch, it shows what prediction would, beside captions that may be masked."""
    keys = KEYS | {"transform": {"size": 6, "resize": 8, "crop": "random", "flip": 0.5}}
    images = [encoded(noise(number, 8, 8)) for number in range(4)]
    made = objective(name, FakeImages(CAPTIONS, images), **keys)
    made.is_training = False
    whole = [made._transform.fit(decode_image(image)).numpy().tobytes() for image in images]
    for epoch in range(4):
        for index in range(4):
            example = made.make(epoch, index)
            is_own = name == "clip" or bool(example["match"][0])
            shown = whole.index(example["pixels"].tobytes())
            assert (shown == index) == is_own


def test_files_that_changed_are_named() -> None:
    made = objective("clip", FakeImages([[20], [30]], [picture(0), b"no image"]), **KEYS)
    with pytest.raises(DataError, match="image 1: the file holds no image"):
        made.make(0, 1)
