"""What the original got wrong of images and sounds, numbered as in the list of its defects."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import sentencepiece
import torch

from tencentpretrain.cli import main
from tencentpretrain.compose import compose
from tencentpretrain.config import decode
from tencentpretrain.data.objectives.base import OBJECTIVES
from tencentpretrain.data.objectives.beit import BeitObjective
from tencentpretrain.data.objectives.dalle import DalleObjective
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.targets.classify import PoolingName, pool
from tencentpretrain.tokenizers.base import TOKENIZERS, build_tokenizer
from tencentpretrain.types import Hidden
from tests.helpers.models import layout_of, model_config
from tests.helpers.pictures import class_folders, media_shards
from tests.helpers.zoo import shrunk


def test_d5_the_temperature_of_clip_starts_as_published() -> None:
    target = build_model(shrunk("clip/tiny"), 40).target["contrast"]
    log_scale = target.get_parameter("log_scale")
    assert log_scale.item() == pytest.approx(math.log(1 / 0.07), rel=1e-6)


def test_d5_convolutions_over_frames_start_as_he_proposed() -> None:
    """Uniform within the root of one over the values that a kernel reads, not of deviation 0.02."""
    model = build_model(model_config("s2t/tiny"), 40)
    weight = model.embedding.get_parameter("frames.layers.1.weight")
    limit = 1 / math.sqrt(weight[0].numel())
    assert 0.95 * limit < weight.abs().max() <= limit
    assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_d15_padding_and_segments_change_no_pooled_states(pooling: PoolingName) -> None:
    states = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0)) - 3
    padded = pool(Hidden(states, layout_of((7, 4))), pooling)
    alone = pool(Hidden(states[1:, :4], layout_of((4,))), pooling)
    torch.testing.assert_close(padded[1:], alone)
    assert padded.abs().max() < 10, "no sign of masks may be in it"


def test_d51_d63_more_classes_than_the_head_has_are_told_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media_shards(tmp_path / "shards", class_folders(tmp_path / "pictures", 3))
    words = [
        "model=vit/tiny",
        "model.target.classify.classes=1",
        f"data.path={tmp_path / 'shards'}",
        f"run_dir={tmp_path / 'run'}",
        "parallel.device=cpu",
        "trainer.steps=1",
    ]
    assert main("pretrain", words) == 2
    error = capsys.readouterr().err
    assert "model.target.classify.classes" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "objective", "mask"),
    [("beit", "beit", "full"), ("dalle", "dalle", "prefix"), ("talk2face", "dalle", "prefix")],
)
def test_d52_models_of_image_codes_name_what_there_is(name: str, objective: str, mask: str) -> None:
    composed = compose("pretrain", [f"model={name}/base"])
    config = decode(ModelConfig, composed.data["model"])
    assert not composed.problems
    assert config.objective is not None
    assert config.objective.name == objective
    assert OBJECTIVES.get(objective) in (BeitObjective, DalleObjective)
    assert getattr(config.encoder, "mask", None) == mask


def test_d54_texts_of_speech_are_cut_as_the_library_does(tmp_path: Path) -> None:
    """A comma behind a number brought a space of its own there, and unknown pieces had no id."""
    texts = ["it was 25, or 3,000 of them", "25,", "in 1,5 hours, say 7,", "a b c d e f"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=32, minloglevel=2
    )
    path = tmp_path / "spm.model"
    path.write_bytes(model.getvalue())
    kind = {"name": "sentencepiece", "vocab": str(path)}
    ours = build_tokenizer(decode(TOKENIZERS.config_class("sentencepiece"), kind))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in [*texts[:4], "▁ 25 ,", "ω 25,"]:
        assert ours.encode(text) == theirs.encode(text)
        assert all(isinstance(token, int) for token in ours.encode(text))
