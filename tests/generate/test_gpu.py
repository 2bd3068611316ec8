"""A GPU writes what the CPU does."""

from typing import Any

import pytest
import torch

from tencentpretrain.model import Model
from tests.helpers.writing import built, ids_of, pair_config, random_prompts, write, writer_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    "keys", [{}, {"temperature": 1.0, "top_k": 9}, {"beams": 3}, {"repetition_penalty": 1.5}]
)
@pytest.mark.parametrize("kind", ["learned", "rotary", "relative", "alibi", "lstm", "pair"])
def test_texts_are_those_of_the_cpu(kind: str, keys: dict[str, Any]) -> None:
    model: Model = built(pair_config() if kind == "pair" else writer_config(kind))
    prompts = random_prompts((5, 2, 8, 1))
    keys = {"ends": tuple(range(0, 50, 4)), "start": (2,), **keys}
    texts = ids_of(write(model, prompts, **keys))
    assert ids_of(write(model.cuda(), prompts, **keys)) == texts
