"""A run with the weights of a random model of `transformers`, for what is compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.tokenizers.base import Tokenizer
from tests.helpers.reference import VOCABULARY, pair
from tests.helpers.saved_models import numbered_words, save_model, word_tokenizer

LENGTH = 16
"""Positions of the models."""


def reference_run(folder: Path, family: str) -> tuple[Path, Any, Tokenizer]:
    """Run directory, the model of `transformers` with its weights, and the tokenizer of both."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    models = pair(family)
    tokenizer = word_tokenizer(folder, numbered_words(VOCABULARY))
    save_model(folder / "run", models.ours, models.incoming.model.to_dict(), tokenizer)
    return folder / "run", models.theirs, tokenizer
