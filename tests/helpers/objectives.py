"""Building objectives over documents in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from tencentpretrain.config import decode
from tencentpretrain.data.objectives import OBJECTIVES
from tests.helpers.shards import SPECIALS, FakeShards, FakeTokenizer


def objective(
    name: str,
    shards: FakeShards,
    tokenizer: FakeTokenizer | None = None,
    seed: int = 3,
    documents: np.ndarray | None = None,
    **values: Any,
) -> Any:
    """The objective `name` with the config `values`; by default its vocabulary fits `shards`."""
    config = decode(OBJECTIVES.get(name).Config, {"name": name, **values})
    tokenizer = tokenizer or FakeTokenizer(shards.tokens + SPECIALS)
    return OBJECTIVES.build(config, shards, tokenizer, seed, documents)


def original(example: dict[str, np.ndarray]) -> np.ndarray:
    """The row before it was masked."""
    ids = example["ids"].copy()
    ids[example["index"]] = example["labels"]
    return ids
