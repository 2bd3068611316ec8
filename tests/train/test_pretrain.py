"""What a config of pre-training must hold, before anything is read."""

from __future__ import annotations

import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.train.pretrain import PretrainConfig
from tests.helpers.models import TINY, model_data


def test_a_target_of_one_class_is_not_trained() -> None:
    """As converted ViLT models of image and text have it: it can answer, and learn nothing."""
    model = model_data("vilt/tiny", TINY, {"target": {"match": {"classes": 1}}})
    content = {"model": model, "data": {"path": "data"}, "run_dir": "run", "trainer": {"steps": 1}}
    with pytest.raises(ConfigError, match=r"match\.classes must be at least 2 to be trained"):
        decode(PretrainConfig, content)
