"""Models as they lie in directories of ours."""

from __future__ import annotations

from pathlib import Path

from tencentpretrain.config import decode
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tencentpretrain.train.source import saved_config, saved_tokenizer


def load_saved(path: Path) -> Model:
    """The model of a checkpoint as a user would load it: every tensor must fit."""
    checkpoint = open_checkpoint(path)
    config = decode(ModelConfig, saved_config(checkpoint)["model"])
    tokenizer = saved_tokenizer(checkpoint)
    model = build_model(config, 0 if tokenizer is None else tokenizer.vocab_size)
    load_weights(model, checkpoint.tensors("model"))
    return model.eval()
