"""Encoder-decoders learn to restore a text of which they read a part."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tencentpretrain.config import decode
from tencentpretrain.data.shard_writer import ShardWriter
from tencentpretrain.tokenizers.base import TOKENIZERS, build_tokenizer
from tests.end_to_end.test_pretrain import assert_same_checkpoint, newest
from tests.helpers.pretraining import metrics, pretrain

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"<extra_id_{n}>" for n in range(20))]
WORDS = 30
TINY: dict[str, Any] = {
    "model.encoder.heads": 2,
    "model.encoder.ffn": 32,
    "model.decoder.layers": 1,
    "model.decoder.heads": 2,
    "model.decoder.ffn": 32,
    "model.objective.target_length": 32,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents in which the same word always follows a word."""
    folder = tmp_path_factory.mktemp("data")
    words = [f"w{number}" for number in range(WORDS)]
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    values = {"name": "wordpiece", "vocab": str(folder / "vocab.txt")}
    tokenizer = build_tokenizer(decode(TOKENIZERS.config_class("wordpiece"), values))
    draw = np.random.default_rng(0)
    with ShardWriter(folder / "shards", tokenizer) as writer:
        for _ in range(60):
            starts = draw.integers(0, WORDS, draw.integers(1, 6)).tolist()
            lengths = draw.integers(1, 12, len(starts)).tolist()
            pairs = zip(starts, lengths, strict=True)
            writer.add([[len(SPECIAL) + (s + n) % WORDS for n in range(size)] for s, size in pairs])
    return folder / "shards"


@pytest.mark.parametrize("name", ["t5", "bart", "pegasus"])
def test_an_encoder_decoder_trains_and_continues(shards: Path, tmp_path: Path, name: str) -> None:
    keys = {"model": f"{name}/tiny", **TINY, "optim.lr": 0.01, "trainer.steps": 6}
    assert pretrain(shards, tmp_path / "whole", **keys) == 0
    for _ in range(2):
        assert pretrain(shards, tmp_path / "parts", **keys, **{"trainer.stop_after": 3}) == 0
    assert_same_checkpoint(newest(tmp_path / "parts"), newest(tmp_path / "whole"))
    losses = [r["train/loss"] for r in metrics(tmp_path / "whole") if "train/loss" in r]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
