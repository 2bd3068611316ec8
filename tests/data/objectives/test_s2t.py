"""Sounds with their texts out of shards: frames, tokens, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.media.filter_banks import FilterBank, FilterBankConfig
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
from tencentpretrain.data.shards import ShardSet, open_shards
from tencentpretrain.errors import DataError
from tencentpretrain.model import ModelConfig
from tests.helpers.models import model_data
from tests.helpers.records import record_objective, words
from tests.helpers.sounds import letters, spoken_shards, wave

TEXTS = ["low", "higher", "a", "low"]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return spoken_shards(tmp_path, TEXTS)


@pytest.mark.parametrize("store", ["bytes", "path"])
def test_the_decoder_reads_what_it_is_to_write_one_later(tmp_path: Path, store: str) -> None:
    shards = spoken_shards(tmp_path, TEXTS, store=store)
    example = record_objective("s2t", shards, start="cls").make(0, 1)
    assert words(shards, example["target_ids"]) == "[CLS] h i g h e r"
    assert words(shards, example["labels"]) == "h i g h e r [SEP]"
    assert example["index"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    frames = FilterBank(FilterBankConfig())(wave(0.23, 400))
    assert np.allclose(example["frames"], frames, atol=0.02)


def test_a_sound_that_cannot_be_decoded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = spoken_shards(tmp_path, TEXTS, store="path")
    monkeypatch.setattr(shards, "media", lambda document: b"")
    with pytest.raises(DataError, match=r"sounds/1.wav: the sound file is empty"):
        record_objective("s2t", shards).make(0, 1)


def test_a_prompt_is_read_but_not_learned(shards: ShardSet) -> None:
    example = record_objective("s2t", shards, prompt=["[CLS]", "x", "y"]).make(0, 0)
    assert words(shards, example["target_ids"]) == "[CLS] x y l o w"
    assert words(shards, example["labels"]) == "l o w [SEP]"
    assert example["index"].tolist() == [2, 3, 4, 5]


def test_unknown_prompts_are_refused(shards: ShardSet) -> None:
    with pytest.raises(DataError, match=r"`\[CLS\[` of the prompt.*\[CLS\]"):
        record_objective("s2t", shards, prompt=["[CLS["])


def test_examples_depend_on_seed_epoch_and_index_alone(shards: ShardSet) -> None:
    keys: dict[str, Any] = {"augment": {"policy": "ld"}, "speeds": [0.9, 1.0, 1.1]}
    objective, other = (record_objective("s2t", shards, **keys) for _ in range(2))
    first = [objective.make(epoch, 1)["frames"] for epoch in range(4)]
    again = [other.make(epoch, 1)["frames"] for epoch in reversed(range(4))][::-1]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any(a.shape != first[0].shape or (a != first[0]).any() for a in first)
    other.is_training = False
    plain = record_objective("s2t", shards)
    assert (other.make(3, 1)["frames"] == plain.make(0, 1)["frames"]).all()


def test_d18_only_real_targets_are_learned_and_d88_frames_are_padded_to_their_batch(
    shards: ShardSet,
) -> None:
    objective = record_objective("s2t", shards, pad_to=4)
    examples = [objective.make(0, index) for index in range(4)]
    batch = objective.collate(examples)
    source, target = batch.streams["src"], batch.streams["tgt"]
    lengths = [len(example["frames"]) for example in examples]
    assert source.layout.lengths == tuple(lengths)
    assert source.inputs["frames"].shape == (4, -(-max(lengths) // 4) * 4, 80)
    labels = batch.labels["lm"]
    assert labels.index is not None
    assert torch.equal(labels.index, target.layout.valid.flatten().nonzero().squeeze(1))
    assert len(labels.values) == sum(len(text) + 1 for text in TEXTS)
    assert batch.tokens == sum(lengths) + len(labels.values)


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ({"length": 24}, [0, 1]),
        ({"length": 24, "speeds": [0.9, 1.0]}, [0]),
        ({"length": 24, "overlong": "cut"}, [0, 1, 2, 3]),
        ({"target_length": 5}, [0, 2, 3]),
    ],
)
def test_what_does_not_fit_is_left_out_and_told(
    shards: ShardSet, keys: dict[str, Any], kept: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        objective = record_objective("s2t", shards, **{"target_length": 16, **keys})
    assert objective.documents.tolist() == kept
    assert (f"leaves out {4 - len(kept)} of 4 sounds" in caplog.text) == (len(kept) < 4)
    limit = keys.get("length", 3000)
    assert all(len(objective.make(5, i)["frames"]) <= limit for i in range(len(objective)))


def test_sizes_are_lengths_in_milliseconds(shards: ShardSet) -> None:
    objective = record_objective("s2t", shards, documents=np.array([3, 1]))
    assert objective.sizes().tolist() == [290, 230]


def test_texts_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("low\n\nhigh\n")
    content = {
        "tokenizer": {"name": "character", "vocab": str(letters(tmp_path))},
        "corpus": {"path": str(tmp_path / "a.txt")},
        "output": str(tmp_path / "shards"),
        "workers": 1,
    }
    config = decode(PreprocessConfig, content)
    run_preprocess(config)
    with pytest.raises(DataError, match=r"corpus\.format=audio_text"):
        record_objective("s2t", open_shards(config.output))


def test_frames_are_as_wide_as_the_model_reads() -> None:
    data = model_data("s2t/tiny", {"objective": {"bank": {"bands": 40}}})
    with pytest.raises(ConfigError, match=r"must be embedding.parts.frames.bands=80, but is 40"):
        decode(ModelConfig, data)


def test_models_without_a_decoder_are_refused() -> None:
    data = model_data("s2t/tiny") | {"decoder": None, "target_embedding": None}
    with pytest.raises(ConfigError, match="needs a decoder"):
        decode(ModelConfig, data)
